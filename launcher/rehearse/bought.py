"""Meeting a deadline on a spot trace: on-demand alone, spot alone, or both by the Uniform Progress policy. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from launcher.deadline import Capacity, Job, Outcome, play
from launcher.money import Prices
from launcher.rehearse.traces import Trace, counts

TICK_S = 60.0


class Choice(NamedTuple):
    """A way to hold nodes, how a job goes by it, and what that costs (None: prices are not known)."""

    name: str
    outcome: Outcome
    cost: float | None


def spot_ticks(trace: Trace, nodes: int, tick_s: float = TICK_S) -> list[bool]:
    """Tell for each tick of a trace whether there are `nodes` nodes from its beginning to its end."""
    found: list[bool] = [True] * int(trace.end_s // tick_s)
    at_s = 0.0
    for seconds, here in counts(trace):
        if here < nodes and seconds:
            last = min(len(found), -int(-(at_s + seconds) // tick_s))
            for tick in range(int(at_s // tick_s), last):
                found[tick] = False
        at_s += seconds
    return found


def choices(trace: Trace, nodes: int, job: Job, prices: Prices | None) -> Iterator[Choice]:
    """Yield what each way comes to for a job on `nodes` nodes."""
    spot = spot_ticks(trace, nodes)
    ways = (("on-demand only", Capacity.ON_DEMAND), ("spot only", Capacity.SPOT), ("uniform progress", None))
    for name, only in ways:
        outcome = play(job, spot, TICK_S, only=only)
        cost = nodes * outcome.cost(prices.spot, prices.on_demand) if prices else None
        yield Choice(name, outcome, cost)


def sentence(choice: Choice, job: Job) -> str:
    """Say how a way went."""
    done_s = choice.outcome.done_s
    if done_s is None:
        when = "not done by the end of the trace"
    else:
        when = f"done after {done_s / 3600:.2f} h" + ("" if done_s <= job.deadline_s else ", too late")
    held = f"{choice.outcome.spot_s / 3600:.2f} h spot, {choice.outcome.on_demand_s / 3600:.2f} h on-demand"
    return f"{choice.name}: {when}; {held}" + ("" if choice.cost is None else f", {choice.cost:.2f}")
