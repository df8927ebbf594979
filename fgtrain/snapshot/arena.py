"""A rank's arena: the slots in host memory that its shares are staged in, and what each of them is at.

A slot is being filled, or complete, or being uploaded or copied, or free. The newest complete ones are kept: they are
what a killed worker is recovered from. All memory is taken at once, when it is known how much a share needs, so that a
folder that cannot hold the arena is found then and not in mid-copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fgtrain.errors import StoreUnavailable
from fgtrain.snapshot import staged
from fgtrain.snapshot.staged import Header, MemoryFile
from fgtrain.snapshot.staging import page_lock, page_unlock

_KEPT = 2  # newest complete slots: the last one may be incomplete on another rank
FROZEN = "frozen"


class Arena:
    """Slots of one rank, in the first of `folders` that holds them all."""

    def __init__(self, folders: Sequence[Path], slots: int, note: Callable[[str], None], *, pinned: bool) -> None:
        """Plan an arena; nothing is taken yet.

        Args:
            folders: where, from the best; each belongs to this rank and attempt.
            slots: how many.
            note: told of a folder that cannot hold them.
            pinned: whether a device copies into it.
        """
        self._folders = list(folders)
        self._left: list[Path] = []
        self._names = [f"slot{i}" for i in range(slots)]
        self._note, self._pinned = note, pinned
        self._files: dict[str, MemoryFile] = {}
        self._views: dict[str, torch.Tensor] = {}
        self._complete: list[str] = []  # oldest first
        self._filling: str | None = None
        self.uploading: set[str] = set()
        self.copying: set[str] = set()  # to another node

    @property
    def folder(self) -> Path:
        """Where the slots are."""
        return self._folders[0]

    # -- memory ---------------------------------------------------------------------------------------------------

    def reserve(self, moving_bytes: int, frozen_bytes: int) -> None:
        """Take the memory for shares of this size; a folder that has not enough is given up for the next.

        Raises:
            StoreUnavailable: no folder has enough.
        """
        wanted = dict.fromkeys(self._names, moving_bytes) | ({FROZEN: frozen_bytes} if frozen_bytes else {})
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, bytes_ in wanted.items():
                    self._grow(name, bytes_)
            except OSError as error:
                problem = f"{self.folder} cannot hold {sum(wanted.values()):,} bytes of snapshots: {error.strerror}"
            else:
                return
            if self.uploading or self.copying or len(self._folders) == 1:
                raise StoreUnavailable(problem)
            self._leave()
            self._note(f"{problem}; they go to {self.folder}")

    def _grow(self, name: str, bytes_: int) -> None:
        if name in self._files and self._files[name].bytes_ >= bytes_:
            return
        self._unlock(name)
        self._files[name] = MemoryFile(self.folder / f"{name}.bytes", bytes_)
        self._views[name] = torch.frombuffer(self._files[name].map, dtype=torch.uint8)
        if self._pinned:
            page_lock(self._views[name])

    def _leave(self) -> None:
        """Begin anew in the next folder. What is complete in this one stays there until there is as much again."""
        for name in self._views:
            self._unlock(name)
        self._files.clear()
        self._views.clear()
        self._left.append(self._folders.pop(0))
        if not self._complete:
            self._forget_left()
        self._complete.clear()

    def _unlock(self, name: str) -> None:
        if self._pinned and name in self._views:
            page_unlock(self._views[name])

    def _forget_left(self) -> None:
        while self._left:
            shutil.rmtree(self._left.pop(), ignore_errors=True)

    def view(self, name: str) -> torch.Tensor:
        """Return the memory of a slot (or `FROZEN`) as flat uint8."""
        return self._views[name]

    def crc32(self, name: str, bytes_: int) -> int:
        """Return the CRC-32 of the first bytes of a slot (or `FROZEN`)."""
        return self._files[name].crc32(bytes_)

    # -- slots ----------------------------------------------------------------------------------------------------

    def free(self) -> str | None:
        """Return a slot that may be overwritten, None if there is none."""
        filled = list(dict.fromkeys([*self._complete, *([self._filling] if self._filling else [])]))
        kept = filled[-_KEPT:] if len(self._names) > _KEPT else filled[-1:]
        busy = {*kept, *self.uploading, *self.copying}
        return next((n for n in self._names if n not in busy), None)

    def fill(self, slot: str) -> None:
        """Declare a slot void: it is being overwritten."""
        self._filling = slot
        if slot in self._complete:
            self._complete.remove(slot)
        staged.remove_header(self.folder, slot)

    def filled(self, slot: str, header: Header) -> None:
        """Declare a slot complete.

        Raises:
            OSError: the header cannot be written; the slot stays void.
        """
        try:
            staged.write_header(self.folder, slot, header)
            self._complete.append(slot)
            if len(self._complete) >= _KEPT:
                self._forget_left()
        finally:
            self._filling = None
