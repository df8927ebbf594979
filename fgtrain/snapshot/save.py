"""Taking snapshots without stopping: stage this rank's share, upload it from another process, hear of commits later."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist

from fgtrain.errors import StoreUnavailable
from fgtrain.manifest import Manifest
from fgtrain.place import Place, from_leader
from fgtrain.runstore import RunStore
from fgtrain.snapshot import staged
from fgtrain.snapshot.layout import Layout, Tensors
from fgtrain.snapshot.memory import forget_older
from fgtrain.snapshot.protocol import (
    Committed,
    Copied,
    Copy,
    Failed,
    Listening,
    Meet,
    Persist,
    Quit,
    Report,
    Stored,
    encode,
)
from fgtrain.snapshot.replicate import Peer, peer_of
from fgtrain.snapshot.staged import Header, Lines, MemoryFile, Stretch
from fgtrain.snapshot.staging import Piece, make_stager, page_lock, pieces
from fgtrain.snapshot.uploader import Start

FINAL_TIMEOUT_S = 3600.0
_MEET_TIMEOUT_S = 60.0
_REHASH_EVERY = 20  # snapshots between two looks at what is believed not to have changed
_KEPT = 2  # newest complete slots: the last one may be incomplete on another rank


class Outcome(NamedTuple):
    """What became of snapshots since last asked: commits, failures (this rank's view)."""

    committed: list[Committed]
    failed: list[Failed]


class Saver:
    """Takes the snapshots of one attempt; all ranks call together."""

    def __init__(
        self,
        runs: RunStore,
        place: Place,
        attempt: int,
        folder: Path,
        *,
        slots: int,
        copies: bool,
        determinism: str,
        last: Manifest | None,
        verified: bool,
        inherited: frozenset[str] = frozenset(),
    ) -> None:
        """Stage in `folder`, which belongs to this rank and attempt; `copies`: keep one on another node too.

        See `uploader.Start` for the rest.
        """
        self._runs, self._place, self._attempt, self._folder = runs, place, attempt, folder
        self._determinism = determinism
        self._base = last.name if last else None
        folder.mkdir(parents=True, exist_ok=True)
        self._names = [f"slot{i}" for i in range(slots)]
        self._files: dict[str, MemoryFile] = {}
        self._stager = make_stager(place.device)
        self._complete: list[str] = []  # slots that hold a whole share, oldest first
        self._uploading: set[str] = set()
        self._persisted = self._begun = 0
        self._layout: Layout | None = None
        self._views: dict[str, torch.Tensor] = {}
        self._start = Start(
            store=runs.store.url,
            run=runs.run,
            folder=str(folder),
            attempt=attempt,
            rank=place.rank,
            parent=os.getpid(),
            last=self._base,
            verified=verified,
            host=os.environ.get("FGLAUNCH_ADDRESS", "127.0.0.1"),
            token=from_leader(secrets.token_hex(16), place),
            inherited=tuple(sorted(inherited)),
        )
        self._uploader = _UploaderProcess(self._start)
        self._copying: set[str] = set()
        self._peer = self._meet() if copies else None

    def _meet(self) -> Peer | None:
        """Tell all ranks where this one takes in copies, and learn where to send its own; None on a single node."""
        if self._place.size == 1:
            return None
        first = self._uploader.report(_MEET_TIMEOUT_S)
        port = first.port if isinstance(first, Listening) else 0
        mine = (str(self._folder.parent), self._start.host, port)
        everyone: list[tuple[str, str, int]] = [mine] * self._place.size
        dist.all_gather_object(everyone, mine)
        rank = peer_of(self._place.rank, [node for node, _, _ in everyone])
        if rank is None or not everyone[rank][2]:
            return None
        peer = Peer(everyone[rank][1], everyone[rank][2], self._start.token)
        self._uploader.order(Meet(peer))
        return peer

    @property
    def copy_s(self) -> float:
        """How long the last copy into host memory took, in seconds; 0 before the first."""
        return self._stager.copy_s

    # -- staging --------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether there is no slot for another snapshot now."""
        return self._free_slot() is None

    def _free_slot(self) -> str | None:
        kept = set(self._complete[-_KEPT:]) if len(self._names) > _KEPT + 1 else set(self._complete[-1:])
        busy = kept | self._uploading | self._copying
        return next((n for n in self._names if n not in busy), None)

    def begin(
        self, step: int, tensors: Tensors, buffers: set[str], values: dict[str, Any], lines: Lines, *, persist: bool
    ) -> None:
        """Begin a snapshot of the state after `step` steps; there must be room (not `full`).

        Args:
            step: optimizer steps done.
            tensors: the live state by group.
            buffers: names of tensors that the forward pass changes.
            values: what is not a tensor.
            lines: this rank's log lines that no commit has yet.
            persist: whether to upload it, or only keep it in this host's memory.
        """
        self._stager.finish()
        self._begun += 1
        if self._begun == 3 and self._place.local_rank == 0:  # by now every rank has staged a whole share
            forget_older(self._folder.parent, self._attempt)
        slot = self._free_slot()
        assert slot is not None
        rehash = persist and self._persisted % _REHASH_EVERY == 0
        stretches, now, later = self._plan(slot, tensors, buffers, frozen=rehash or "frozen" not in self._files)
        if slot in self._complete:
            self._complete.remove(slot)
        staged.remove_header(self._folder, slot)
        assert self._layout is not None
        header = Header(
            run=self._runs.run,
            attempt=self._attempt,
            step=step,
            rank=self._place.rank,
            world=self._place.size,
            base=self._base,
            determinism=self._determinism,
            chunk_bytes=self._layout.chunk_bytes,
            group_bytes=self._layout.group_bytes,
            spans=self._layout.spans if self._place.leads else {},
            values=values if self._place.leads else {},
            stretches=stretches,
            lines=lines,
            crc32={},
        )
        copy = self._peer is not None and not self._copying and not self._uploading
        if copy:
            self._copying.add(slot)
        if persist:
            self._uploading.add(slot)
            self._persisted += 1

        def done() -> None:
            crc32 = {f: self._files[f.removesuffix(".bytes")].crc32() for f in {s.file for s in stretches}}
            staged.write_header(self._folder, slot, msgspec.structs.replace(header, crc32=crc32))
            self._complete.append(slot)
            if persist:
                self._uploader.order(Persist(slot, step, rehash))
            if copy:
                self._uploader.order(Copy(slot, step))

        self._stager.begin(now, later, done)

    def drain(self) -> None:
        """Return once the optimizer may change the state; the time this takes is the snapshot's stall."""
        self._stager.drain()

    def _plan(
        self, slot: str, tensors: Tensors, buffers: set[str], *, frozen: bool
    ) -> tuple[tuple[Stretch, ...], list[Piece], list[Piece]]:
        """Return where this rank's share goes, what to copy at once, and what in the background."""
        if self._layout is None or len(self._layout.spans) != sum(map(len, tensors.values())):
            self._layout = Layout(tensors)
        layout = self._layout
        stretches, now, later, offset = [], [], [], 0
        shares = layout.share(self._place.rank, self._place.size)
        moving = sum(stop - start for group, (start, stop) in shares.items() if group != "frozen")
        for group, (start, stop) in shares.items():
            still = group == "frozen"
            file, at = ("frozen", 0) if still else (slot, offset)
            view = self._view(file, stop - start if still else moving)[at : at + stop - start]
            stretches.append(Stretch(group, start, stop, f"{file}.bytes", at))
            offset += 0 if still else stop - start
            if still and not frozen:
                continue
            early = {n for n in tensors[group] if n in buffers}
            now += pieces(layout, tensors, group, start, stop, view, early)
            later += pieces(layout, tensors, group, start, stop, view, set(tensors[group]) - early)
        return tuple(stretches), now, later

    def _view(self, file: str, bytes_: int) -> torch.Tensor:
        """Return a memory file as flat uint8, made at first use or when the state has grown."""
        if file not in self._files or self._files[file].bytes_ < bytes_:
            self._files[file] = MemoryFile(self._folder / f"{file}.bytes", bytes_)
            self._views[file] = torch.frombuffer(self._files[file].map, dtype=torch.uint8)
            if self._place.device.type == "cuda":
                page_lock(self._views[file])
        return self._views[file]

    # -- what becomes of them -------------------------------------------------------------------------------------

    def poll(self) -> Outcome:
        """Return the commits and failures heard of since last asked; never waits."""
        outcome = Outcome([], [])
        while (report := self._uploader.report(0)) is not None:
            self._take(report, outcome)
        if not self._uploader.alive:
            self._replace_uploader(outcome)
        return outcome

    def _replace_uploader(self, outcome: Outcome) -> None:
        """Start another uploader for one that died; what it had in hand has failed."""
        for slot in sorted(self._uploading):
            outcome.failed.append(Failed(0, slot, "the uploader process died", False))
        self._uploading.clear()
        self._copying.clear()
        self._uploader.close()
        self._start = msgspec.structs.replace(self._start, last=self._base, verified=False)
        self._uploader = _UploaderProcess(self._start)
        if self._peer:
            self._uploader.order(Meet(self._peer))

    def make_room(self) -> None:
        """Wait until there is a slot for another snapshot."""
        self._stager.finish()
        outcome = Outcome([], [])
        while self.full:
            report = self._uploader.report(1.0)
            if report is not None:
                self._take(report, outcome)
            elif not self._uploader.alive:
                self._replace_uploader(outcome)

    def _take(self, report: Report, outcome: Outcome) -> None:
        match report:
            case Stored(slot=slot):
                self._uploading.discard(slot)
            case Failed(slot=slot):
                self._uploading.discard(slot)
                outcome.failed.append(report)
            case Copied(slot=slot):
                self._copying.discard(slot)
            case Committed(name=name):
                self._base = name
                outcome.committed.append(report)

    def settle(self, step: int) -> tuple[Committed, Outcome]:
        """Wait until the snapshot of `step` is committed, on every rank.

        Returns:
            The commit, and what else was heard of.

        Raises:
            StoreUnavailable: it failed.
        """
        self._stager.finish()
        outcome = Outcome([], [])
        deadline = time.monotonic() + FINAL_TIMEOUT_S
        mine: Committed | Failed | Stored | None = None
        while mine is None and time.monotonic() < deadline:
            report = self._uploader.report(1.0)
            if report is not None:
                self._take(report, outcome)
                decisive = (Committed, Failed) if self._place.leads else (Stored, Failed)
                mine = report if isinstance(report, decisive) and report.step == step else None
            elif not self._uploader.alive:
                break
        answer = from_leader(mine, self._place)
        if not isinstance(answer, Committed):
            reason = answer.reason if isinstance(answer, Failed) else "the uploader gave no answer"
            raise StoreUnavailable(f"snapshot of step {step}: {reason}")
        self._base = answer.name
        return answer, outcome

    def close(self) -> None:
        """Let the uploader go."""
        self._stager.finish()
        self._uploader.close()


class _UploaderProcess:
    """The uploader of this rank, and the pipes to it."""

    def __init__(self, start: Start) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fgtrain.snapshot.uploader", msgspec.json.encode(start).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reports: SimpleQueue[Report] = SimpleQueue()
        threading.Thread(target=self._listen, name="uploader reports", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._reports.put(msgspec.json.decode(line, type=Report))

    def order(self, what: Persist | Copy | Meet) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(what))
            self._process.stdin.flush()
        except OSError:
            return  # it died: `Saver.poll` sees that and counts what it had in hand as failed

    def report(self, timeout_s: float) -> Report | None:
        try:
            return self._reports.get(timeout=timeout_s) if timeout_s else self._reports.get_nowait()
        except Empty:
            return None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(encode(Quit()))
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
