"""Processes of toy runs: `python -m tests.testbed.toy.nursery`, which imports torch once and forks everything else.

A line of JSON (a Job) on standard input starts a supervisor; its process ID is answered, and later, when it has ended,
its exit code. A supervisor keeps an agent a node, in a process group of its own, and begins all anew when one fails; an
agent keeps its workers. Each is killed with its parent, as in the product.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from fgtrain.lifeline import die_with_parent
from tests.testbed.toy import worker
from tests.testbed.toy.job import Job

_POLL_S = 0.05


def fork(child: Callable[[], int]) -> int:
    """Run `child` in a process that dies with this one; returns its process ID."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 70
    try:
        die_with_parent(parent=parent)
        code = child()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def supervise(job: Job) -> int:
    """Keep a run going; 0 when every agent ended well."""
    os.setsid()
    os.environ.update(job.env)
    log = os.open(Path(job.work) / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for _ in range(job.restarts + 1):
        meeting = Path(job.work) / f"meeting-{uuid.uuid4().hex}"
        agents = [fork(partial(keep_node, job, node, meeting)) for node in range(job.nodes)]
        for agent in agents:
            with contextlib.suppress(OSError):  # it has done so itself, and perhaps ended
                os.setpgid(agent, agent)
        if all_end_well(agents, os.killpg):
            return 0
    return 1


def keep_node(job: Job, node: int, meeting: Path) -> int:
    """Be a node's agent."""
    os.setpgid(0, 0)
    job.enter("agent", node)
    ranks = range(job.gpus)
    workers = [fork(partial(be_worker, job, node, local, meeting)) for local in ranks]
    return 0 if all_end_well(workers, os.kill) else 1


def be_worker(job: Job, node: int, local_rank: int, meeting: Path) -> int:
    """Be one rank."""
    faulthandler.register(signal.SIGUSR1)  # where it hangs, into the log
    rank = node * job.gpus + local_rank
    job.enter("worker", rank)
    worker.work(job, node, worker.join(job, node, local_rank, meeting))
    return 0


def all_end_well(children: list[int], kill: Callable[[int, int], None]) -> bool:
    """Wait for children; the first that ends badly takes the others with it."""
    left, well = set(children), True
    while left:
        pid, status = os.waitpid(-1, 0)
        left.discard(pid)
        if status != 0 and well:
            well = False
            for other in left:
                try:
                    kill(other, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    return well


def main() -> None:
    """Serve until standard input ends; what still runs then is killed with this process."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    while True:
        if select.select([0], [], [], _POLL_S)[0]:
            line = sys.stdin.buffer.readline()
            if not line:
                return
            job = msgspec.json.decode(line, type=Job)
            print("started", fork(partial(supervise, job)), flush=True)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            continue
        if pid:
            print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
