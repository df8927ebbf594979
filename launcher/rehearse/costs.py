"""What a run's steps, snapshots and restarts cost: as measured from its events, or defaults. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import msgspec

from fgtrain.snapshot import interval
from launcher.events import Event
from launcher.rehearse.account import Stretch, overlap, stretches


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that things take. The defaults are a guess: a middling model on a middling cluster.

    step: of an optimizer step, by nodes; what is not listed is scaled from the nearest, as if work were shared without
    loss. stall: that training waits for a snapshot to the store; latency: from there to its commit; drag: the share of
    its speed that training loses in between. copy: of a snapshot in host memory. detect: from a loss to knowing of it.
    restart: from there to the first step. join: that training pauses while nodes join it.
    """

    step: dict[int, float] = msgspec.field(default_factory=lambda: {1: 1.0})
    stall: float = 0.1
    latency: float = 10.0
    drag: float = 0.05
    copy: float = 0.1
    detect: float = 3.0
    restart: float = 20.0
    start: float = 40.0
    join: float = 10.0

    def step_at(self, nodes: int) -> float:
        """Return the seconds of a step on `nodes` nodes (1 or more)."""
        near = min(self.step, key=lambda n: abs(n - nodes))
        return self.step[near] * near / nodes


def measured(
    events: Sequence[Event],
    gpus: int,
    known: Costs | None = None,
    begun_s: float | None = None,
    short: Sequence[tuple[float, float]] = (),
) -> Costs:
    """Return what a run's events tell, and `known` (or the defaults) for the rest.

    Args:
        events: what its rank 0 wrote.
        gpus: ranks a node.
        known: what to believe of what the events do not tell.
        begun_s: when the run was started, Unix seconds.
        short: intervals, Unix seconds, in which too few nodes were there; they count for no restart.
    """
    known = known or Costs()
    steps, runs = step_seconds(events), stretches(events)
    snapshots = [e for e in events if e["event"] == "snapshot"]
    copies = [e["copy_ms"] / 1e3 for e in snapshots if e.get("copy_ms")]
    gaps = [max(0.0, b.begun_s - a.ended_s) - overlap(short, a.ended_s, b.begun_s) for a, b in pairwise(runs)]
    return Costs(
        step={max(1, ranks // gpus): s for ranks, s in steps.items()} or known.step,
        stall=_median([e["stall_ms"] / 1e3 for e in snapshots], known.stall),
        latency=_median([e["seconds"] for e in snapshots], known.latency),
        drag=known.drag,
        copy=_median(copies, known.copy),
        # Events tell of the gap as a whole: what of it is detection is not known, nor does the model need to.
        detect=0.0 if gaps else known.detect,
        restart=_median(gaps, known.restart),
        start=_start(runs[0], begun_s, short) if runs and begun_s is not None else known.start,
        join=_median(gaps, known.join),
    )


def _start(first: Stretch, begun_s: float, short: Sequence[tuple[float, float]]) -> float:
    return max(0.0, first.begun_s - begun_s) - overlap(short, begun_s, first.begun_s)


def _median(values: Sequence[float], default: float) -> float:
    return median(values) if values else default


def step_seconds(events: Sequence[Event]) -> dict[int, float]:
    """Return the seconds of a step by ranks: the median away from snapshots, and its share of the evaluations."""
    found: dict[int, list[float]] = defaultdict(list)
    evaluated: dict[int, list[tuple[float, int]]] = defaultdict(list)  # seconds and steps up to an evaluation's end
    last: Event | None = None
    world = 0
    for event in sorted(events, key=lambda e: float(e.get("time", 0.0))):
        match event["event"]:
            case "attempt":
                world, last = int(event["world"]), None
            case "snapshot":
                last = None
            case "evaluation":
                if last is not None:
                    evaluated[world].append((event["time"] - last["time"], event["step"] - last["step"]))
                last = None
            case "step":
                if last is not None and event["step"] > last["step"]:
                    found[world].append((event["time"] - last["time"]) / (event["step"] - last["step"]))
                last = event
    return {w: _with_evaluations(median(times), evaluated[w], _steps(events, w)) for w, times in found.items()}


def _with_evaluations(step_s: float, evaluated: Sequence[tuple[float, int]], steps: int) -> float:
    extra = sum(max(0.0, seconds - count * step_s) for seconds, count in evaluated)
    return step_s + extra / max(1, steps)


def _steps(events: Sequence[Event], world: int) -> int:
    return sum(r.last - r.first for r in stretches(events) if r.world == world)


def young_daly_s(costs: Costs, mtbf_s: float) -> float:
    """Return the interval between snapshots that a run would choose, by the very function that it asks."""
    seen = interval.Costs(stall=costs.stall, latency=costs.latency, drag=costs.drag, slots=1)
    return interval.interval_s(seen, mtbf_s)
