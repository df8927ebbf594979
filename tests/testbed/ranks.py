"""A function on several ranks: gloo processes that fork from a server which has imported torch already."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TIMEOUT_S = 240.0
# The last one is what a DTensor's first operation would import, for seconds, in every rank.
PRELOAD = ["torch.distributed.checkpoint", "torch.distributed.fsdp", "fgtrain.dcp", "torch._dynamo"]


def on_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns on each rank, in a process group of all of them.

    The function is found by its name in its module. The first error of any rank is raised here, as text.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(world)]
        ranks = [
            context.Process(target=_rank, args=(r, world, folder, ends[r][1], work, args), daemon=True)
            for r in range(world)
        ]
        try:
            for process, (_, theirs) in zip(ranks, ends, strict=True):
                process.start()
                theirs.close()
            return _collect([ours for ours, _ in ends])
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _collect(ends: list[Connection]) -> list[Any]:
    answers: dict[int, Any] = {}
    while len(answers) < len(ends):
        ready = wait([e for i, e in enumerate(ends) if i not in answers], timeout=TIMEOUT_S)
        assert ready, f"ranks {sorted(set(range(len(ends))) - answers.keys())} did not answer"
        for i, end in enumerate(ends):
            if end in ready:
                answer, error = end.recv()
                assert error is None, f"rank {i}:\n{error}"
                answers[i] = answer
    return [answers[i] for i in range(len(ends))]


def _rank(rank: int, world: int, folder: str, end: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder)}/meet", rank=rank, world_size=world)
    try:
        answer: tuple[Any, str | None] = (work(rank, *args), None)
    except BaseException:  # torch's CheckpointException is no Exception
        answer = (None, traceback.format_exc())
    end.send(answer)
    end.close()
    if answer[1] is None:
        dist.destroy_process_group()
