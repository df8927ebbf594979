"""How long training stands still after a fault: `python -m benchmarks.recovery`.

Two nodes of one process each, on this machine, of a run that may shrink to one (1:2). The same toy model under torchrun
as it comes, torchrun with its settings tuned, and fglaunch, in turns. Struck is node 1, which hosts no store:

    worker    kill -9 of its worker
    agent     kill -9 of its agent alone
    node      kill -9 of its agent and its worker
    silence   SIGSTOP of all its processes: to the others, a cable that was cut

The figure is the time from the fault to the end of the first step of the next incarnation of the workers.

A round of everything takes some eight minutes, most of it waiting for peers that notice nothing: `--faults` and
`--peers` choose. Interrupted, by Ctrl-C or SIGTERM, it prints the table of what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.processes import children, kill, marked, with_words
from benchmarks.spread import ratios, spread
from benchmarks.table import conditions, render

BAR = 0.2  # of torchrun's default, for a worker
FAULTS = ("worker", "agent", "node", "silence")
_WARM_UP_STEPS = 25
_START_S = 300.0
_TUNED = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
_RECIPE = ("recipes/quickstart.py", "--set", "epochs=100000", "--set", "evaluate.every_epochs=0")


class Job(Protocol):
    """A run on two nodes."""

    def agent(self) -> int:
        """Return the process ID of node 1's agent."""

    def worker(self) -> int:
        """Return the process ID of node 1's worker."""

    def node(self) -> list[int]:
        """Return the process IDs of all that runs on node 1."""

    def steps(self) -> list[tuple[float, int, int]]:
        """Return (Unix time, step, incarnation) of steps so far; an incarnation's first step is among them."""

    def end(self) -> None:
        """Kill all of it."""


class Torchrun:
    """torchrun's agents on the hand-written loop."""

    def __init__(self, folder: Path, *, tuned: bool) -> None:
        self._folder = folder
        port = _free_port()
        env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if tuned else {})
        self._agents = []
        for number in range(2):
            settings = f"is_host={1 - number}" + (f",{_TUNED}" if tuned else "")
            argv = [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
                *("--rdzv-id=toy", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"),
                *(f"--rdzv-conf={settings}", "--local-addr=127.0.0.1", "--max-restarts=100"),
                *(["--monitor-interval=0.02"] if tuned else []),
                *("-m", "benchmarks.recovery_peer", str(folder)),
            ]
            with (folder / f"agent{number}.log").open("w") as log:
                self._agents.append(subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True))

    def agent(self) -> int:
        """See `Job`."""
        return self._agents[1].pid

    def worker(self) -> int:
        """See `Job`."""
        return children(self.agent())[0]

    def node(self) -> list[int]:
        """See `Job`."""
        return [self.agent(), *children(self.agent())]

    def steps(self) -> list[tuple[float, int, int]]:
        """See `Job`."""
        return [(s["time"], s["step"], s["incarnation"]) for s in _lines(self._folder / "steps.jsonl")]

    def end(self) -> None:
        """See `Job`; a worker that outlived its agent is found by its command line."""
        kill([p for a in self._agents for p in (a.pid, *children(a.pid))])
        kill(with_words(str(self._folder), "benchmarks.recovery_peer"))
        for agent in self._agents:
            agent.wait(30)


class Ours:
    """fglaunch, as a user starts it."""

    def __init__(self, folder: Path) -> None:
        self._work = folder / "work"
        places = {"STORE": f"file://{folder}/store", "WORK": str(self._work), "MEMORY": str(folder / "memory")}
        env = os.environ | {f"FGLAUNCH_{k}": v for k, v in places.items()}
        argv = [sys.executable, "-m", "launcher", *_RECIPE, "--nodes", "1:2", "--gpus", "1", "--name", "toy"]
        with (folder / "launcher.log").open("w") as log:
            self._launcher = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    def _on_node(self, *words: str) -> list[int]:
        return with_words(str(self._work / "toy" / "node1"), *words)

    def agent(self) -> int:
        """See `Job`."""
        return self._on_node("fgtrain.agent")[0]

    def worker(self) -> int:
        """See `Job`."""
        (agent,) = self._on_node("fgtrain.agent")
        leaders = [p for p in self._on_node("fgtrain.worker") if p != agent and os.getpgid(p) == p]
        return leaders[0]

    def node(self) -> list[int]:
        """See `Job`."""
        return marked(f"{self._work}/toy/node1#")

    def steps(self) -> list[tuple[float, int, int]]:
        """See `Job`."""
        found, incarnation = [], 0
        events = [e for n in range(2) for e in _lines(self._work / "toy" / f"node{n}" / "events.jsonl")]
        for event in sorted(events, key=lambda e: float(e["time"])):
            if event["event"] == "attempt":
                incarnation = event["attempt"]
            elif event["event"] == "step":
                found.append((event["time"], event["step"], incarnation))
        return found

    def end(self) -> None:
        """See `Job`."""
        kill([self._launcher.pid])
        self._launcher.wait(30)
        kill(marked(f"{self._work}/"))


Gaps = dict[str, dict[str, list[float]]]
"""fault -> system -> for how long it stood still, in seconds"""

OURS = "fglaunch"
PEERS: dict[str, Callable[[Path], Job]] = {
    "torchrun": lambda folder: Torchrun(folder, tuned=False),
    "tuned": lambda folder: Torchrun(folder, tuned=True),
}
SYSTEMS: dict[str, Callable[[Path], Job]] = {**PEERS, OURS: Ours}


def strike(job: Job, fault: str) -> None:
    """Do it."""
    match fault:
        case "worker":
            os.kill(job.worker(), signal.SIGKILL)
        case "agent":
            os.kill(job.agent(), signal.SIGKILL)
        case "node":
            kill(job.node())
        case "silence":
            kill(job.node(), signal.SIGSTOP)


def gaps_of(start: Callable[[Path], Job], fault: str, strikes: int, limit_s: float) -> list[float]:
    """Strike a run and return for how long it stands still, in seconds; infinity: longer than `limit_s`.

    Only workers can be struck more than once: other faults leave a run of another shape.
    """
    with tempfile.TemporaryDirectory(prefix="recovery-", ignore_cleanup_errors=True) as folder:
        job = start(Path(folder))
        try:
            gaps: list[float] = []
            while len(gaps) < (strikes if fault == "worker" else 1) and float("inf") not in gaps:
                gaps.append(_gap(job, fault, limit_s))
            return gaps
        finally:
            job.end()


def _gap(job: Job, fault: str, limit_s: float) -> float:
    known = job.steps()[-1][1] if job.steps() else 0
    _wait(lambda: any(s >= known + _WARM_UP_STEPS for _, s, _ in job.steps()[-3:]), _START_S, "the run moves")
    before, at = {i for _, _, i in job.steps()}, time.time()
    strike(job, fault)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        after = [t for t, _, i in job.steps() if i not in before]
        if after:
            return min(after) - at
        time.sleep(0.05)
    return float("inf")


def measure(gaps: Gaps, rounds: int, strikes: int, limit_s: float) -> bool:
    """Strike every system in every way, in `rounds` turns, and fill in `gaps`; False if it was interrupted."""
    try:
        for _ in range(rounds):
            for fault, by_system in gaps.items():
                for name, taken in by_system.items():
                    seen = gaps_of(SYSTEMS[name], fault, strikes, limit_s)
                    taken += seen
                    words = ", ".join(_spell([s], limit_s) for s in seen)
                    print(f"{fault}: {name}: {words} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return False
    return True


def rows(gaps: Gaps, limit_s: float) -> list[list[str]]:
    """Lay out the table: medians in seconds, and fglaunch's share of torchrun's default; "-": not measured."""
    return [
        [fault, *(_spell(times, limit_s) for times in by_system.values()), _share(by_system, limit_s)]
        for fault, by_system in gaps.items()
    ]


def share_of_default(by_system: dict[str, list[float]], limit_s: float) -> float:
    """Return the median of fglaunch's gaps over torchrun's; in pairs, where a run has not ended its round early."""
    ours, theirs = ([min(t, limit_s) for t in by_system[name]] for name in (OURS, "torchrun"))
    if len(ours) != len(theirs):
        return spread(ours).median / spread(theirs).median
    return spread(ratios(ours, theirs)).median


def _share(by_system: dict[str, list[float]], limit_s: float) -> str:
    if not by_system.get("torchrun") or not by_system[OURS]:
        return "-"
    unseen = float("inf") in by_system["torchrun"]
    return f"{'< ' if unseen else ''}{share_of_default(by_system, limit_s):.2f}"


def _spell(times: Sequence[float], limit_s: float) -> str:
    if not times:
        return "-"
    middle = spread([min(t, limit_s) for t in times]).median
    return f"> {limit_s:.0f}" if middle >= limit_s else f"{middle:.1f}"


# -- processes ----------------------------------------------------------------------------------------------------


def _wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    found = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line, of somebody who was killed
            found.append(json.loads(line))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; there are {', '.join(names)}")
        return chosen

    return parse


def _interrupt(signum: int, frame: object) -> None:
    """Stop measuring, once: what was started is ended in peace."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Measure and print; 1 if the bar is missed, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="benchmarks.recovery", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--strikes", type=int, default=1, metavar="N", help="at a run's workers (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=60.0, metavar="S", help="wait no longer (default: %(default)s)")
    parser.add_argument("--faults", type=some_of(FAULTS), default=list(FAULTS), help="which, of " + ",".join(FAULTS))
    parser.add_argument("--peers", type=some_of([*PEERS]), default=[*PEERS], help="which, of " + ",".join(PEERS))
    args = parser.parse_args()
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, _interrupt)
    said = conditions()
    gaps: Gaps = {fault: {system: [] for system in (*args.peers, OURS)} for fault in args.faults}
    whole = measure(gaps, args.rounds, args.strikes, args.limit)
    print(table(gaps, said, args.rounds, args.limit, whole=whole))
    met = _met(gaps, args.limit)
    return 130 if not whole else 1 if met is False else 0


def table(gaps: Gaps, said: str, rounds: int, limit_s: float, *, whole: bool) -> str:
    """Return all that is printed; without `whole`, marked as a part."""
    taken = max((len(times) for by_system in gaps.values() for times in by_system.values()), default=0)
    part = "" if whole else f"; INTERRUPTED: what was taken so far, {taken} or less of each"
    headers = ["fault at one of two nodes", *(f"{name}, s" for name in next(iter(gaps.values()))), "ratio"]
    lines = [f"{said}; medians of {rounds} rounds in turns{part}", "", render(headers, rows(gaps, limit_s))]
    if (met := _met(gaps, limit_s)) is not None:
        text = f"bar: a worker's loss costs at most {BAR:g} of what it costs torchrun's default"
        lines += ["", f"{text}: {'met' if met else 'missed'}"]
    return "\n".join(lines)


def _met(gaps: Gaps, limit_s: float) -> bool | None:
    """Tell whether the bar is met; None if what it is about was not measured."""
    by_system = gaps.get("worker", {})
    if not by_system.get("torchrun") or not by_system[OURS]:
        return None
    return share_of_default(by_system, limit_s) <= BAR


if __name__ == "__main__":
    sys.exit(main())
