"""Memory that all ranks of a node share while a state is restored, so that each byte enters a node once."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist

from fgtrain.place import Place, from_all


class Common(NamedTuple):
    """Memory for `buffer.numel()` bytes; `holder[r]` is the rank whose copy of it is the one that rank r writes to."""

    buffer: torch.Tensor
    holder: list[int]

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


def take(bytes_: int, place: Place) -> Common:
    """Return memory that the ranks of each node share; memory of each rank's own where it cannot be shared.

    The first rank of a node makes it, without a name: when its processes are gone, so is it.
    """
    if place.size == 1 or bytes_ == 0:
        return Common(torch.empty(bytes_, dtype=torch.uint8), [place.rank] if place.size == 1 else [0] * place.size)
    nodes = from_all(place.node, place)
    holder = [nodes.index(node) for node in nodes]
    made = _make(bytes_) if holder[place.rank] == place.rank and nodes.count(place.node) > 1 else None
    paths = from_all(None if made is None else f"/proc/{os.getpid()}/fd/{made}", place)
    shared = _open(paths[holder[place.rank]], bytes_)
    everywhere = all(from_all(shared is not None or nodes.count(place.node) == 1, place))  # and all have opened it
    if made is not None:
        os.close(made)
    if everywhere:
        own = shared if shared is not None else torch.empty(bytes_, dtype=torch.uint8)
        return Common(own, holder)
    return Common(torch.empty(bytes_, dtype=torch.uint8), list(range(place.size)))


def _make(bytes_: int) -> int | None:
    if sys.platform != "linux":
        return None
    fd = os.memfd_create("fglaunch-restore")  # limited by the memory there is, as any allocation, not by /dev/shm
    os.ftruncate(fd, bytes_)
    return fd


def _open(path: str | None, bytes_: int) -> torch.Tensor | None:
    if path is None:
        return None
    with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:  # noqa: PTH123 - no real path
        return torch.frombuffer(mmap.mmap(file.fileno(), bytes_), dtype=torch.uint8)
    return None
