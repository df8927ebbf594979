"""Starts a node's workers through DeepSpeed's launcher: what `--engine deepspeed` puts in the workers' place. Light.

    python -m fgtrain.deepspeed_launch --slots N STORE RUN FOLDER

The node's agent starts it in each round as if it were a worker, and ends it as one. It writes the round's hostfile into
the node's working folder, runs `deepspeed` on it without ssh (every node has an agent of its own) and stands for it:
signals go on to the workers, and how the launcher ends is how this process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fgtrain.lifeline import LAUNCHER_PID, die_with_parent
from fgtrain.phases import NODES
from fgtrain.plan import DETECT_S
from fgtrain.pulse import FILE, Beat, Phase, alive, decode
from fgtrain.stopped import Stopped
from fgtrain.warm_client import EXIT_OVER, OVER_SIGNAL

HOSTFILE = "hostfile"
_POLL_S = 0.1
_EXIT_USER = 2


def hostfile(nodes: Sequence[str], slots: int) -> str:
    """Return DeepSpeed's list of machines, in order of node rank. Pure."""
    return "".join(f"{node} slots={slots}\n" for node in nodes)


def launcher_argv(
    python: str,
    *,
    folder: str,
    rank: int | str,
    address: str,
    port: int | str,
    devices: str | None,
    worker: Sequence[str],
) -> tuple[str, ...]:
    """Return the command line of DeepSpeed's launcher on one node. Pure.

    Args:
        python: the node's interpreter.
        folder: the node's working folder, where the hostfile is.
        rank: the node's, in the hostfile.
        address: where workers meet.
        port: where they do there.
        devices: CUDA_VISIBLE_DEVICES of the workers, None to leave it alone. DeepSpeed counts slots from 0, whatever
            share of a machine this node has.
        worker: the worker's arguments.
    """
    return (
        *(python, "-m", "deepspeed.launcher.runner"),
        f"--hostfile={folder}/{HOSTFILE}",
        "--no_ssh",
        f"--node_rank={rank}",
        f"--master_addr={address}",
        f"--master_port={port}",
        "--log_level=warning",
        *("--no_python", "--no_local_rank"),
        *([] if devices is None else ["env", f"CUDA_VISIBLE_DEVICES={devices}"]),
        *(python, "-u", "-m", "fgtrain.worker", *worker),
    )


def worker_env(env: Mapping[str, str], slots: int, pid: int) -> dict[str, str]:
    """Return the launcher's environment: its workers are not children of the agent, but of the launcher. Pure."""
    return {k: v for k, v in env.items() if k != "FGLAUNCH_AGENT_PID"} | {
        LAUNCHER_PID: str(pid),
        "LOCAL_WORLD_SIZE": str(slots),  # the agent counts this process as its only worker
    }


def end_of(code: int, beats: Sequence[Beat], slots: int, killed: int = 0) -> int:
    """Return what a launcher's exit status means: 0 done, above 0 a status, below a signal. Pure.

    DeepSpeed passes on the status of a worker that has failed when it looks, once a second; a signal's number comes
    negative, modulo 256. A launcher that was itself killed counts as successful there; here, what counts is that all
    workers have said that they are done. `killed`: a signal that was seen to end a worker, after which others may have
    failed too.
    """
    if sum(b.phase is Phase.DONE for b in beats) == slots:
        return 0
    if code and killed:
        return -killed
    if code > 256 - signal.NSIG:
        return code - 256
    return code or -signal.SIGKILL


class Launch:
    """DeepSpeed's launcher and its workers, in a session of their own."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], folder: Path, slots: int, detect_s: float) -> None:
        """Start nothing yet; workers that are stopped for `detect_s` seconds will be killed."""
        self._argv, self._env, self._pulse, self._slots = argv, env, folder / FILE, slots
        self._stopped, self._told, self._asked = Stopped(detect_s), set[int](), False
        self._killed = 0
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Start it and wait; returns how it ended, as `end_of` has it. Nothing is left of it then."""
        self._pulse.unlink(missing_ok=True)  # the ranks of earlier rounds are gone, and so is what they wrote last
        process = self._process = subprocess.Popen(self._argv, env=self._env, start_new_session=True)
        while process.poll() is None:
            self._attend()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
        end = end_of(process.returncode, self._beats(), self._slots, self._killed)
        self.kill()
        return end

    def ask(self) -> None:
        """Ask the workers to leave: each will at the next step boundary. What has not got so far is killed."""
        self._asked = True

    def kill(self) -> None:
        """Kill all of it."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _attend(self) -> None:
        """Pass on what was asked; look for workers that somebody has stopped, and for those that a signal has ended."""
        living = {b.pid for b in self._beats() if alive(b)}
        self._killed = self._killed or max(map(killed_by, living), default=0)
        for pid in self._stopped.look(living, time.monotonic()):
            print(f"worker {pid} is stopped: killed", file=sys.stderr, flush=True)
            _signal(pid, signal.SIGKILL)
        if self._asked and not living:
            self.kill()
        for pid in living - self._told if self._asked else ():
            self._told.add(pid)
            _signal(pid, signal.SIGTERM)

    def _beats(self) -> list[Beat]:
        try:
            return decode(self._pulse.read_bytes())
        except FileNotFoundError:  # no worker has begun
            return []


def killed_by(pid: int) -> int:
    """Return the signal that has ended a process that its parent has not looked at yet; 0 if there is none."""
    with contextlib.suppress(OSError, IndexError):
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if after_name[0] == "Z":
            return int(after_name[49]) & 0x7F  # field 52, exit_code, in the form of wait(2). Source: proc(5)
    return 0


def main() -> int:
    """Launch this node's workers and stand for them; returns the exit status."""
    agent = os.environ.get("FGLAUNCH_AGENT_PID")
    die_with_parent(OVER_SIGNAL, parent=int(agent) if agent else None)
    parser = argparse.ArgumentParser(prog="fgtrain.deepspeed_launch")
    parser.add_argument("--slots", type=int, required=True, help="workers of this node")
    parser.add_argument("store", help="URL of the store")
    parser.add_argument("run", help="name of the run")
    parser.add_argument("folder", type=Path, help="this node's working folder")
    args = parser.parse_args()
    if importlib.util.find_spec("deepspeed") is None:
        return _refuse(args.store, args.run, args.folder)
    (args.folder / HOSTFILE).write_text(hostfile(os.environ[NODES].split(","), args.slots), encoding="utf-8")
    argv = launcher_argv(
        sys.executable,
        folder=str(args.folder),
        rank=os.environ["GROUP_RANK"],
        address=os.environ["MASTER_ADDR"],
        port=os.environ["MASTER_PORT"],
        devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        worker=(args.store, args.run, str(args.folder)),
    )
    detect_s = float(os.environ.get("FGLAUNCH_DETECT_S", DETECT_S))
    launch = Launch(argv, worker_env(os.environ, args.slots, os.getpid()), args.folder, args.slots, detect_s)
    _listen(launch)
    end = launch.run()
    return end if end >= 0 else _die(-end)


def _listen(launch: Launch) -> None:
    """Pass signals on. A round that is over ends at once, as does all when the agent is gone."""

    def over(signum: int, frame: FrameType | None) -> None:
        launch.kill()
        os._exit(EXIT_OVER)

    def ask(signum: int, frame: FrameType | None) -> None:
        launch.ask()

    signal.signal(OVER_SIGNAL, over)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, ask)


def _signal(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def _refuse(store: str, run: str, folder: Path) -> int:
    """Tell the user, by the store, that this node has no DeepSpeed: only the launching side was looked at before."""
    from fgtrain.departure import node_name
    from fgtrain.runstore import Failure, RunStore
    from fgtrain.stores import open_store

    message = (
        f"--engine deepspeed: DeepSpeed is not installed on {node_name(str(folder))}: pip install 'fglaunch[deepspeed]'"
    )
    failure = Failure(
        attempt=0, rank=0, time=time.time(), kind="user", message=message, traceback="", folder=str(folder)
    )
    RunStore(open_store(store), run).write(f"errors/00000-00000-{os.getpid()}.json", failure)
    return _EXIT_USER


def _die(number: int) -> NoReturn:
    """End by the signal that a worker ended by."""
    import resource  # no part of Python everywhere, and this module is also read where nothing is launched

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has left its own
    with contextlib.suppress(OSError):  # those that cannot be caught
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
