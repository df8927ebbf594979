"""Memory that all ranks of a node share while a state is restored, so that each byte enters a node once."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from fgtrain.place import Place, from_all
from fgtrain.snapshot.hugepages import SharedMemory, rounded


class Common(NamedTuple):
    """Memory for `buffer.numel()` bytes; `holder[r]` is the rank whose copy of it is the one that rank r writes to.

    `shared`: what is behind it, if others write to it, too.
    """

    buffer: torch.Tensor
    holder: list[int]
    shared: SharedMemory | None = None

    def place(self, at: int, bytes_: int, fetch: Callable[[memoryview], None], scratch: Scratch) -> None:
        """Have `fetch` fill `bytes_` bytes from `at` on; threads may call together."""
        if self.shared is None or self.shared.make_huge(at, at + bytes_):
            fetch(memoryview(self.buffer.numpy()).cast("B")[at : at + bytes_])  # type: ignore[arg-type]
            return
        data = scratch.of(bytes_)
        fetch(data)
        self.shared.write(at, data)

    def close(self) -> None:
        """Let the descriptor go; the memory stays as long as `buffer`."""
        if self.shared is not None:
            self.shared.close()

    def spread(self, stretches: list[list[tuple[int, int]]], place: Place) -> None:
        """Bring what each rank wrote to the nodes that do not have it; all ranks call together.

        Args:
            stretches: the bytes [start, stop) that each rank wrote, by rank.
            place: this process's place.
        """
        holders = sorted(set(self.holder))
        if len(holders) == 1:
            return  # everything is there
        group = dist.new_group(holders, backend="gloo")
        if place.rank in holders:
            for rank, some in enumerate(stretches):
                for start, stop in some:
                    dist.broadcast(self.buffer[start:stop], src=self.holder[rank], group=group)
            dist.destroy_process_group(group)
        dist.barrier()


class Scratch(threading.local):
    """A stretch of memory for each thread, used again and again."""

    _memory: mmap.mmap | None = None

    def of(self, bytes_: int) -> memoryview:
        """Return `bytes_` bytes that only this thread uses."""
        if self._memory is None or len(self._memory) < bytes_:
            self._memory = _anonymous(bytes_)
        return memoryview(self._memory)[:bytes_]


def _anonymous(bytes_: int) -> mmap.mmap:
    """Return memory of this process, in huge pages where there are any: a fault for each small one costs more."""
    memory = mmap.mmap(-1, max(1, bytes_), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _own(bytes_: int) -> torch.Tensor:
    return torch.frombuffer(_anonymous(bytes_), dtype=torch.uint8)[:bytes_]


def take(bytes_: int, place: Place) -> Common:
    """Return memory that the ranks of each node share; memory of each rank's own where it cannot be shared.

    The first rank of a node makes it, without a name: when its processes are gone, so is it.
    """
    if place.size == 1 or bytes_ == 0:
        return Common(_own(bytes_), [place.rank] if place.size == 1 else [0] * place.size)
    nodes = from_all(place.node, place)
    holder = [nodes.index(node) for node in nodes]
    made = _make(bytes_) if holder[place.rank] == place.rank and nodes.count(place.node) > 1 else None
    paths = from_all(None if made is None else f"/proc/{os.getpid()}/fd/{made}", place)
    shared = _open(paths[holder[place.rank]], bytes_)
    everywhere = all(from_all(shared is not None or nodes.count(place.node) == 1, place))  # and all have opened it
    if made is not None:
        os.close(made)
    if everywhere:
        if shared is None:
            return Common(_own(bytes_), holder)
        return Common(torch.frombuffer(shared.view, dtype=torch.uint8), holder, shared)
    if shared is not None:
        shared.close()
    return Common(_own(bytes_), list(range(place.size)))


def _make(bytes_: int) -> int | None:
    if sys.platform != "linux":
        return None
    fd = os.memfd_create("fglaunch-restore")  # limited by the memory there is, as any allocation, not by /dev/shm
    os.ftruncate(fd, rounded(bytes_))
    return fd


def _open(path: str | None, bytes_: int) -> SharedMemory | None:
    """Return the memory behind a path; None if it cannot be had."""
    if path is None:
        return None
    with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
        file = os.open(path, os.O_RDWR)
        undo.callback(os.close, file)
        memory = SharedMemory(file, bytes_)
        undo.pop_all()
        return memory
    return None
