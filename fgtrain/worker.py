"""One rank: `python -m fgtrain.worker STORE RUN FOLDER`, started by an agent."""

from __future__ import annotations

import os

from fgtrain.lifeline import die_with_launcher, die_with_parent

if __name__ == "__main__":  # before the slow imports: an agent may die while they go on
    die_with_parent(parent=int(os.environ["FGLAUNCH_AGENT_PID"]) if "FGLAUNCH_AGENT_PID" in os.environ else None)

import time

if __name__ == "__main__":
    _BEGUN = time.time()

import argparse
import faulthandler
import json
import multiprocessing
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec

from fgtrain import lease
from fgtrain.departure import EXIT_LEFT
from fgtrain.errors import FglaunchError, Refitted, StoreUnavailable, UserError
from fgtrain.notice import Flag, Watch
from fgtrain.phases import Phases
from fgtrain.pulse import Phase, Pulse
from fgtrain.recipe import Recipe
from fgtrain.runstore import Attempt, Failure, RunStore
from fgtrain.shortages import says_any
from fgtrain.stores import open_store

COLLECTIVE_TIMEOUT_S = 300.0

STACKS_SIGNAL = signal.SIGUSR2  # Slurm gives notice by SIGUSR1
EXIT_USER = 2


class Notice:
    """Whether this process has been asked to stop: by a signal, or with its node (`fgtrain.notice`)."""

    def __init__(self, folder: Path) -> None:
        self._received = False
        self._watch = Watch(Flag(folder))
        for sig in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(sig, self._take)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def stop_asked(self) -> bool:
        """Tell whether to leave at the next step boundary."""
        self._watch.look()
        return self._received or self._watch.leave

    def save_asked(self) -> bool:
        """Tell, once for each time, whether an early snapshot is asked for."""
        return self._watch.take_save()


class Log:
    """This process's output goes to a file of its own, named once its attempt is known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "logs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"starting-{os.getpid()}.log"
        fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
        faulthandler.enable()  # of a crash in native code, at least where it happened

    def rename(self, attempt: int, rank: int) -> None:
        """Call the file by attempt and rank."""
        self._path = self._path.rename(self._folder / f"{attempt:05d}-{rank:05d}.log")


def main(begun: float) -> int:
    """Run one rank, whose process began at `begun` (Unix seconds), and return its exit code."""
    phases = Phases(begun)
    die_with_launcher()
    parser = argparse.ArgumentParser(prog="fgtrain.worker")
    parser.add_argument("store", help="URL of the store")
    parser.add_argument("run", help="name of the run")
    parser.add_argument("folder", type=Path, help="this node's working folder")
    args = parser.parse_args()
    log = Log(args.folder)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)  # into the log
    notice = Notice(args.folder)
    runs = RunStore(open_store(args.store), args.run)
    progress = _Progress(log, args.folder)
    try:
        if _train(runs, args.folder, progress, notice, phases):
            return 0
        _leave_node(runs, args.folder)
        return EXIT_LEFT
    except Exception as error:
        traceback.print_exc()
        _report(runs, args.folder, progress, error)
        return EXIT_USER if isinstance(error, UserError) else 1
    finally:
        end_children()


def end_children() -> None:
    """End loader processes that are left: they ignore what Python asks of them at its end, and it waits for them."""
    for process in multiprocessing.active_children():
        process.kill()


def _leave_node(runs: RunStore, folder: Path) -> None:
    """Free the host memory that the run holds here if this node is not the run's to keep."""
    from fgtrain.snapshot.memory import forget, memory_folders

    if "FGLAUNCH_LEAVES_NODES" in os.environ:
        for memory in memory_folders(runs.run, folder, runs.run_file().identity):
            forget(memory)


class _Progress:
    """What a failure report needs to know."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.log = log
        self.attempt: Attempt | None = None
        self.rank = int(os.environ.get("RANK", "0"))
        self.pulse = Pulse(folder, int(os.environ.get("LOCAL_RANK", "0")), self.rank)

    @property
    def stepped(self) -> bool:
        """Whether this attempt has taken a step."""
        return self.attempt is not None and self.pulse.step not in (None, self.attempt.step)

    def begun(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.log.rename(attempt.attempt, self.rank)


def _train(runs: RunStore, folder: Path, progress: _Progress, notice: Notice, phases: Phases) -> bool:
    from fgtrain import place as places
    from fgtrain.dataindex import index_digest, usable
    from fgtrain.train import train

    phases.end("import")
    run = runs.run_file()
    index, _ = usable(run.recipe.data, run.recipe.data.index())
    if index_digest(index) != run.data_digest:
        raise UserError(f"the data of {run.name} is not what it was when the run began; start a new run")
    phases.end("data")
    place = places.join(COLLECTIVE_TIMEOUT_S)
    phases.end("group")
    try:
        done = train(
            *(run, index, runs, place, folder),
            begun=progress.begun,
            stop_asked=notice.stop_asked,
            save_asked=notice.save_asked,
            pulse=progress.pulse,
            phases=phases,
        )
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        if not progress.stepped and (reason := _recipes_fault(error, run.recipe)):
            raise UserError(reason) from error
        raise
    places.leave()
    if done:
        progress.pulse.phase(Phase.DONE)
    return done


def _recipes_fault(error: Exception, recipe: Recipe) -> str | None:
    """Return what is wrong with a recipe whose first step failed, if its model does not take its pictures at all.

    The launching side finds that before anything starts, where it has torch.
    """
    from fgtrain.trial import refusal

    return refusal(recipe) if _kind(error) == "error" else None


def _report(runs: RunStore, folder: Path, progress: _Progress, error: Exception) -> None:
    """Leave the reason in the store, for the supervisor and the user; if that fails too, among the node's events.

    A supervisor that goes on elsewhere is not to take it for a failure of its own ranks: the log has it.
    """
    with suppress(FglaunchError):
        if lease.superseded(runs):
            return
    attempt = progress.attempt.attempt if progress.attempt else 0
    failure = Failure(
        attempt=attempt,
        rank=progress.rank,
        time=time.time(),
        kind=_kind(error),
        message=f"{error}" if isinstance(error, FglaunchError) else f"{type(error).__name__}: {error}",
        traceback=traceback.format_exc(),
        step=progress.pulse.step,
        folder=str(folder),
    )
    try:
        runs.write(f"errors/{attempt:05d}-{progress.rank:05d}-{os.getpid()}.json", failure)
    except FglaunchError:
        traceback.print_exc()
        event = {"event": "failure", "time": failure.time, "failure": msgspec.to_builtins(failure)}
        with (folder / "events.jsonl").open("a", encoding="utf-8") as events:
            events.write(json.dumps(event, ensure_ascii=False) + "\n")


def _kind(error: Exception) -> str:
    """Tell the user's mistakes, outages, want of memory, and a rank that only lost its peers from other failures."""
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, Refitted):
        return "fitted"
    if isinstance(error, StoreUnavailable):
        return "outage"
    import torch.distributed as dist

    from fgtrain.oom import is_oom

    if says_any(f"{type(error).__name__}: {error}") or (isinstance(error, RuntimeError) and is_oom(error)):
        return "oom"  # also where NCCL says so, which is no loss of a peer
    lost_peer = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "store->get")
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in lost_peer)
    ):
        return "peer"
    return "error"


if __name__ == "__main__":
    sys.exit(main(_BEGUN))
