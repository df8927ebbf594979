"""On a node of a SkyPilot cluster: the job that a run's programs live in. Standard library; Python 3.9 will do.

    python3 holder.py serve JOB IDLE_S          the job, on every node: ends when nothing ran for IDLE_S
    python3 holder.py python JOB RANK ARG...    a Python like any other, only that it runs inside the job

Why: what is started over SSH alone is not SkyPilot's. Its autostop would take the cluster for idle and tear it down
under a run whose laptop sleeps; on Slurm a program would die with the connection and would not see the job's GPUs.
So whoever comes over SSH calls `python`, which hands its arguments and its standard streams to the job's holder; the
holder runs a Python with them. It adopts what that one leaves behind, so it knows whether anything still runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_ADOPT = 36  # PR_SET_CHILD_SUBREAPER. Source: prctl(2)
_TICK_S = 0.5
_START_S = 5.0  # how long `python` waits for a job that is just starting
_STREAMS = 3  # standard input, output and error are handed over
_HEAD = 1 << 16


def socket_file(job: str, rank: str) -> Path:
    """Return where the holder of a node listens: on the node's own disk, and this user's alone.

    Raises:
        PermissionError: somebody else made the folder.
    """
    folder = Path("/tmp") / f"fglaunch-{os.getuid()}"  # short, as names of sockets must be
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder / f"{job}-{rank}.sock"


# -- the job ------------------------------------------------------------------------------------------------------


def serve(job: str, idle_s: float) -> None:
    """Serve whoever comes, until nothing ran for so long."""
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    place = socket_file(job, os.environ.get("SKYPILOT_NODE_RANK", "0"))
    _clear(place.parent)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place.with_suffix(".new")))
        door.listen()
        place.with_suffix(".new").rename(place)  # or it could be taken for a dead one
        print("fglaunch: ready", flush=True)
        busy = time.monotonic()
        while time.monotonic() - busy < idle_s:
            if select.select([door], [], [], _TICK_S)[0]:
                _let_in(door)
            if _anything_runs():
                busy = time.monotonic()
    place.unlink()
    print(f"fglaunch: nothing ran for {idle_s:g} s", flush=True)
    _give_back()


def _clear(folder: Path) -> None:
    """Remove the sockets of holders that were killed."""
    for file in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(file))
            except ConnectionRefusedError:
                file.unlink()
            except OSError:
                continue


def _anything_runs() -> bool:
    """Reap what has ended; whether anything is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _let_in(door: socket.socket) -> None:
    """Start the Python that is asked for, on the asker's standard streams."""
    guest, _ = door.accept()
    with guest:
        guest.settimeout(_START_S)
        streams: list[int] = []
        try:
            head, streams, _, _ = socket.recv_fds(guest, _HEAD, _STREAMS)
            argv = [sys.executable, *json.loads(head or b"[]")]  # nothing: it was only tried whether we live
            if len(streams) == _STREAMS and os.fork() == 0:
                _become(argv, streams, guest.detach())
        except (OSError, ValueError) as error:
            print(f"fglaunch: {error}", flush=True)
        for stream in streams:
            os.close(stream)


def _become(argv: Sequence[str], streams: Sequence[int], guest: int) -> None:
    """In the child: be that Python. Its end of the connection stays open for as long as it lives."""
    try:
        os.setsid()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)  # or what that Python leaves behind would keep the asker's connection open
        os.set_inheritable(guest, False)
        keep = os.fork()  # the parent waits and then lets the asker go
        if keep:
            os.closerange(0, _STREAMS)
            os.waitpid(keep, 0)
            os._exit(0)
        os.chdir(Path.home())
        os.execv(argv[0], list(argv))
    finally:
        os._exit(127)


def _give_back() -> None:
    """On Slurm, where SkyPilot has no autostop, end the allocation."""
    job = os.environ.get("SLURM_JOB_ID")
    head = os.environ.get("SKYPILOT_NODE_RANK", "0") == "0"  # where agents meet: the others may have lost theirs
    if job and head and shutil.which("scancel"):
        subprocess.call(["scancel", job])


# -- over SSH -----------------------------------------------------------------------------------------------------


def python(job: str, rank: str, argv: Sequence[str]) -> None:
    """Have the holder run a Python on our standard streams; returns when it has ended."""
    with _knock(job, rank) as holder:
        socket.send_fds(holder, [json.dumps(list(argv)).encode()], range(_STREAMS))
        os.closerange(0, _STREAMS - 1)  # theirs now; else nobody would see them end
        while holder.recv(1):
            pass


def _knock(job: str, rank: str) -> socket.socket:
    """Return a connection to this node's holder.

    Raises:
        SystemExit: there is none.
    """
    deadline = time.monotonic() + _START_S
    while True:
        mine = socket_file(job, rank)
        others = list(mine.parent.glob(f"{job}-*.sock"))
        # Ranks may be counted in another order than hosts. On a machine that is one node, any holder is the one.
        found = mine if mine.exists() or len(others) != 1 else others[0]
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.connect(str(found))
            return holder
        except OSError as error:
            holder.close()
            if time.monotonic() > deadline:
                sys.exit(f"the job {job} does not run here: {error}")
        time.sleep(_TICK_S)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], float(sys.argv[3]))
    else:
        python(sys.argv[2], sys.argv[3], sys.argv[4:])
