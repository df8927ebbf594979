"""Where this process stands in the run: rank, world size, device, and the process group it talks through."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from fgtrain.phases import ROUND

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process's rank in a world of `size`, its device, and the number of its node."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    node: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def join(timeout_s: float) -> Place:
    """Join the process group that the agent's environment describes; a lone process needs no environment.

    CPU tensors travel by gloo, CUDA tensors by NCCL. A collective that takes longer than `timeout_s` fails.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        timeout = timedelta(seconds=timeout_s)
        store = _store(timeout)
        if store is None:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return Place(rank, size, local_rank, device, int(os.environ.get("GROUP_RANK", "0")))


def ensure_group(place: Place) -> None:
    """Have a process group also where a lone process has joined none; some strategies do not work without."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _store(timeout: timedelta) -> Store | None:
    """Return where the workers of this round meet: the agents' store, under the round's name; None without agent."""
    round_ = os.environ.get(ROUND)
    if round_ is None:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return PrefixStore(f"workers/{round_}", store)


def leave() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(value: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
    """All-reduce `value` in place over the world and return it."""
    if dist.is_initialized():
        dist.all_reduce(value, op=op)
    return value


def agreeing(value: torch.Tensor) -> Callable[[], None]:
    """Begin to sum `value` over the world, in place; what is returned waits until that is done."""
    work = dist.all_reduce(value, async_op=True) if dist.is_initialized() else None
    return lambda: work.wait() if work else None


def from_leader(value: T, place: Place) -> T:
    """Return rank 0's `value` on every rank."""
    if place.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T, place: Place) -> list[T]:
    """Return every rank's `value`, by rank, on every rank."""
    if place.size == 1:
        return [value]
    box = [value] * place.size
    dist.all_gather_object(box, value)
    return box
