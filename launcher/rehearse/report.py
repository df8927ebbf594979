"""What a rehearsal prints. Pure but for the table's rendering."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from launcher.rehearse.account import Account
from launcher.rehearse.costs import Costs
from launcher.rehearse.model import Policy, best_interval, optimum, simulate
from launcher.rehearse.slots import Moves, held_s
from launcher.rehearse.traces import Statistics

_TRIES = 24  # of intervals: a thousand nodes over weeks are a matter of seconds


class Line(NamedTuple):
    """A way to run, and where its time went."""

    name: str
    account: Account


class Report(NamedTuple):
    """All that is told of a rehearsal; the last line is the offline optimum, which the others are held against."""

    lines: tuple[Line, ...]
    costs: Costs
    node_hours: float
    price_per_node_hour: float | None


def modelled(
    moves: Sequence[Moves], end_s: float, costs: Costs, policy: Policy, least: int, *, name: str = "model"
) -> Iterator[Line]:
    """Yield what the model says: as the run is set, with the best fixed interval in hindsight, and the optimum."""
    yield Line(name, simulate(moves, end_s, costs, policy, least))
    best_s, best = best_interval(moves, end_s, costs, policy, least, _TRIES)
    yield Line(f"best interval ({best_s:.0f} s)", best)
    yield Line("offline optimum", optimum(moves, end_s, costs, least))


def report(
    lines: Sequence[Line], costs: Costs, moves: Sequence[Moves], end_s: float, speed: float, price: float | None
) -> Report:
    """Put a report together; `end_s` and `moves` are compressed by `speed`, node hours are the trace's own."""
    return Report(tuple(lines), costs, held_s(moves, end_s) * speed / 3600, price)


def table(report_: Report) -> Table:
    """Lay the ways to run out side by side."""
    found = Table(box=None, pad_edge=False)
    found.add_column("")
    for name, _ in report_.lines:
        found.add_column(name, justify="right")
    for heading, *cells in rows(report_):
        found.add_row(heading, *cells)
    return found


def rows(report_: Report) -> Iterator[list[str]]:
    """Yield the table's lines: a heading, then a cell for each way to run."""
    accounts = [line.account for line in report_.lines]
    best = accounts[-1]
    yield ["goodput", *(f"{a.goodput:.1%}" for a in accounts)]
    if best.steps:
        yield ["steps, of the optimum's", *(f"{a.steps / best.steps:.1%}" for a in accounts)]
    yield ["steps that count", *(f"{a.steps:,.0f}" for a in accounts)]
    yield ["steps lost", *(f"{a.lost_steps:,.0f}" for a in accounts)]
    yield ["restarts", *(f"{a.restarts:,}" for a in accounts)]
    for name in ("useful", "lost", "restart", "overhead", "waiting"):
        yield [f"{name} s", *(f"{getattr(a, name + '_s'):,.0f}" for a in accounts)]


def sentences(report_: Report, trace: Statistics) -> Iterator[str]:
    """Yield what stands below the table."""
    mtbf = f"an interruption every {trace.mtbf_s:,.0f} s" if trace.mtbf_s else "no interruption"
    yield f"trace: {trace.hours:.2f} h, {trace.least} to {trace.most} nodes, {trace.losses} lost, {mtbf}"
    c = report_.costs
    step = ", ".join(f"{s:.3g} s on {n}" for n, s in sorted(c.step.items()))
    yield (
        f"costs: step {step} nodes; snapshot stall {c.stall:.3g} s, commit after {c.latency:.3g} s, copy"
        f" {c.copy:.3g} s; detection and restart {c.detect + c.restart:.3g} s, start {c.start:.3g} s"
    )
    if report_.price_per_node_hour is not None:
        yield cost_sentence(report_.node_hours, report_.price_per_node_hour, report_.lines[0].account.steps)


def cost_sentence(node_hours: float, price: float, steps: float) -> str:
    """Say what nodes cost, and each step that counts."""
    total = node_hours * price
    each = f", {1000 * total / steps:.4g} for 1,000 useful steps" if steps else ""
    return f"cost: {node_hours:.2f} node hours at {price:g} are {total:.2f}{each}"


def as_json(report_: Report, trace: Statistics) -> dict[str, Any]:
    """Return a report for programs; a fixed interval that never comes due is null."""
    return {
        "lines": [
            {"name": name, **a._asdict(), "goodput": a.goodput, "available_s": a.available_s}
            for name, a in report_.lines
        ],
        "trace": trace._asdict(),
        "costs": msgspec.to_builtins(report_.costs, str_keys=True),
        "node_hours": report_.node_hours,
        "cost": None if report_.price_per_node_hour is None else report_.node_hours * report_.price_per_node_hour,
    }


def policy_of(snapshots: Any, *, noticed: bool, step_s: float) -> Policy:
    """Return how a run with these snapshot settings protects itself."""
    interval_s = snapshots.seconds
    if snapshots.steps is not None:
        by_steps = snapshots.steps * step_s
        interval_s = by_steps if interval_s is None else min(interval_s, by_steps)
    if interval_s is None and not snapshots.auto:
        interval_s = math.inf
    return Policy(
        interval_s=interval_s,
        memory=snapshots.memory_steps != 0 and snapshots.copies,
        memory_steps=snapshots.memory_steps,
        noticed=noticed,
    )
