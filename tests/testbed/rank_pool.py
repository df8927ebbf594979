"""A pool of processes that form process groups of any size, one after another: torch is imported once for all."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from fgtrain.place import Place, leave

P = ParamSpec("P")
T = TypeVar("T")

_TIMEOUT_S = 240.0


class Ranks:
    """Up to `size` ranks; use it as a context.

    With `settled`, all of them form one group at the first call and stay in it: DeepSpeed keeps the first one it meets.
    """

    def __init__(self, size: int, *, settled: bool = False) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "tests.testbed.warm"])
        self._folder = tempfile.TemporaryDirectory()
        self._groups = 0
        self._settled = settled
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def call(
        self, world: int, function: Callable[Concatenate[Place, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """Call a module-level function on every rank of a new process group; returns the answers by rank."""
        assert not self._settled or world == len(self._pipes), "a settled group is of all ranks"
        self._groups += 1
        meeting = Path(self._folder.name) / f"group-{self._groups}"
        for rank, pipe in enumerate(self._pipes[:world]):
            _send(pipe, (rank, world, meeting, self._settled, function, args, kwargs))
        answers = []
        for pipe in self._pipes[:world]:
            assert pipe.poll(_TIMEOUT_S), "a rank does not answer"
            answers.append(pipe.recv())
        failures = [error for error, _ in answers if error]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]


def _serve(pipe: Connection) -> None:
    while True:
        rank, world, meeting, settled, function, args, kwargs = pipe.recv()
        if world > 1 and not dist.is_initialized():
            dist.init_process_group(
                "gloo",
                init_method=f"file://{meeting}",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=_TIMEOUT_S),
            )
        _send(pipe, _answer(Place(rank, world, 0, torch.device("cpu")), function, args, kwargs))
        if not settled:
            leave()


def _send(pipe: Connection, what: Any) -> None:
    """Send tensors by value: to share their memory takes a socket in a temporary folder, which a killed rank leaves."""
    pipe.send_bytes(pickle.dumps(what))


def _answer(place: Place, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[str, Any]:
    try:
        return "", function(place, *args, **kwargs)
    except Exception:
        return traceback.format_exc(), None
