"""How long training stands still after a fault: `python -m benchmarks.recovery`.

Two nodes of one process each, on this machine, of a run that may shrink to one (1:2). The same toy model under torchrun
as it comes, torchrun with its settings tuned, and fglaunch, in turns. Struck is node 1, which hosts no store:

    worker    kill -9 of its worker
    agent     kill -9 of its agent alone
    node      kill -9 of its agent and its worker
    silence   SIGSTOP of all its processes
    network   its cable: the two nodes are network namespaces, and the link of one goes down (root, sshd, iproute2)

The figure is the time from the fault to the end of the first step of the next incarnation of the workers.

A round of everything takes some ten minutes, most of it waiting for peers that notice nothing: `--faults` and
`--peers` choose. Interrupted, by Ctrl-C or SIGTERM, it prints the table of what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.recovery_jobs import OURS, PEERS, SYSTEMS, Job, strike
from benchmarks.spread import ratios, spread
from benchmarks.table import conditions, render
from tests.testbed import netns
from tests.testbed.netns import Hosts

BAR = 0.2  # of torchrun's default, for a worker
FAULTS = ("worker", "agent", "node", "silence", "network")
_WARM_UP_STEPS = 25
_START_S = 300.0

Gaps = dict[str, dict[str, list[float]]]
"""fault -> system -> for how long it stood still, in seconds"""


def gaps_of(system: str, fault: str, strikes: int, limit_s: float) -> list[float]:
    """Strike a run and return for how long it stands still, in seconds; infinity: longer than `limit_s`.

    Only workers can be struck more than once: other faults leave a run of another shape.
    """
    with (
        tempfile.TemporaryDirectory(prefix="recovery-", ignore_cleanup_errors=True) as folder,
        netns.hosts(2) if fault == "network" else contextlib.nullcontext() as hosts,
    ):
        job = SYSTEMS[system](Path(folder), hosts)
        try:
            gaps: list[float] = []
            while len(gaps) < (strikes if fault == "worker" else 1) and float("inf") not in gaps:
                gaps.append(_gap(job, fault, hosts, limit_s))
            return gaps
        finally:
            job.end()


def _gap(job: Job, fault: str, hosts: Hosts | None, limit_s: float) -> float:
    known = job.steps()[-1][1] if job.steps() else 0
    _wait(lambda: any(s >= known + _WARM_UP_STEPS for _, s, _ in job.steps()[-3:]), _START_S, "the run moves")
    before, at = {i for _, _, i in job.steps()}, time.time()
    strike(job, fault, hosts)
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
                    seen = gaps_of(name, fault, strikes, limit_s)
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


def _wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)


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
    if "network" in args.faults and (reason := netns.missing()):
        print(f"network: left out: {reason}", file=sys.stderr)
        args.faults.remove("network")
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
