"""`fglaunch rehearse RECIPE --trace FILE`: a spot trace replayed against real agents, or modelled."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fgtrain.errors import UserError
from fgtrain.plan import World
from fgtrain.recipe import Recipe
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher import foreground, prepare
from launcher.clusters import choose, terms_of, work_root
from launcher.deadline import Job
from launcher.display import make_display
from launcher.events import Event, decode_events
from launcher.foreground import say
from launcher.money import Prices
from launcher.recipe_file import load
from launcher.rehearse import bought, live, report, traces
from launcher.rehearse.costs import Costs, measured
from launcher.rehearse.replay import RehearsalCluster
from launcher.rehearse.slots import Moves, places
from launcher.status import existing_run, read_status

_HOUR_S = 3600.0
_DEFAULT_SPEED = 60.0


class Piece(NamedTuple):
    """What is played: the trace at the pace it is played at, and what that comes to for the run's places."""

    trace: traces.Trace
    moves: list[Moves]
    least: int
    most: int


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    check(args)
    trace = find_trace(args)
    return simulated(args, trace) if args.simulate else replayed(args, trace)


def check(args: argparse.Namespace) -> None:
    """Refuse what makes no sense.

    Raises:
        UserError: names the option.
    """
    for option in ("speed", "hours", "mtbf_hours", "work_hours", "deadline_hours"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{option.replace('_', '-')} {value:g}: must be above 0")
    if not 0 <= args.notice < float("inf"):
        raise UserError(f"--notice {args.notice:g}: seconds, 0 or more")
    if (args.trace is None) == (args.mtbf_hours is None):
        raise UserError("--trace FILE or --mtbf-hours H (nodes lost at random): one of them")
    if args.mtbf_hours is not None and args.hours is None:
        raise UserError("--mtbf-hours: say with --hours for how long")
    if not args.simulate and args.costs_from:
        raise UserError("--costs-from: only with --simulate; a rehearsal measures for itself")
    if (args.work_hours is None) != (args.deadline_hours is None) or (args.work_hours and not args.simulate):
        raise UserError("--work-hours and --deadline-hours: both or neither, and with --simulate")
    if args.simulate and args.speed:
        raise UserError("--speed: only without --simulate; the model is as quick as it is")


def find_trace(args: argparse.Namespace) -> traces.Trace:
    """Return the trace asked for, at its own pace.

    Raises:
        UserError
    """
    if args.trace is None:
        nodes = bounds(args.nodes)[1]
        trace = traces.random_trace(nodes, args.mtbf_hours * _HOUR_S, args.away * 60, args.hours * _HOUR_S)
    else:
        trace = traces.read_trace(Path(args.trace))
    return traces.first(trace, args.hours * _HOUR_S) if args.hours else trace


def bounds(nodes: str) -> tuple[int, int]:
    """Return the fewest and the most nodes that `--nodes N` or `--nodes MIN:MAX` allows.

    Raises:
        UserError: it is neither.
    """
    words = nodes.split(":")
    if len(words) > 2 or not all(w.isascii() and w.isdigit() for w in words):
        raise UserError(f"--nodes {nodes}: a number of nodes, or MIN:MAX")
    least, most = int(words[0]), int(words[-1])
    if not 1 <= least <= most:
        raise UserError(f"--nodes {nodes}: at least 1, and MIN not above MAX")
    return least, most


def piece(trace: traces.Trace, nodes: str, speed: float, notice_s: float) -> Piece:
    """Compress a trace, let notices take nodes away early, and fill the run's places.

    Raises:
        UserError: there are never enough nodes.
    """
    least, most = bounds(nodes)
    played = traces.noticed(traces.faster(trace, speed), notice_s)
    if not traces.availability(played, least):
        raise UserError(f"--nodes {nodes}: the trace never has {least} nodes at once; ask for fewer")
    return Piece(played, places(played, most), least, most)


def simulated(args: argparse.Namespace, trace: traces.Trace) -> int:
    """Model the run on the trace at its own pace."""
    recipe = load(args.recipe, args.overrides)
    found = piece(trace, args.nodes, 1.0, args.notice)
    costs = costs_from(args.costs_from, args.store) if args.costs_from else Costs(step={found.most: 1.0})
    if not args.costs_from:
        say("--costs-from RUN takes what a run of yours measured; without it, defaults are assumed")
    policy = report.policy_of(recipe.snapshots, noticed=args.notice > 0, step_s=costs.step_at(found.most))
    lines = report.modelled(found.moves, found.trace.end_s, costs, policy, found.least)
    told = report.report(list(lines), costs, found.moves, found.trace.end_s, 1.0, price(args))
    ways = list(bought_ways(args, trace, found.most, costs)) if args.work_hours else []
    tell(args, told, trace, ways)
    return 0


def bought_ways(args: argparse.Namespace, trace: traces.Trace, nodes: int, costs: Costs) -> Iterator[str]:
    """Yield a sentence for each way to meet the deadline."""
    changeover_s = costs.detect + costs.start
    job = Job(args.work_hours * _HOUR_S, args.deadline_hours * _HOUR_S, changeover_s)
    if job.deadline_s < job.work_s + changeover_s:
        raise UserError(
            f"--deadline-hours {args.deadline_hours:g}: not even on-demand nodes meet it; the work takes"
            f" {(job.work_s + changeover_s) / _HOUR_S:.2f} h"
        )
    prices = terms_of(choose(None)).prices
    if args.price is not None:
        prices = Prices(args.price, args.price if args.on_demand is None else args.on_demand)
    for choice in bought.choices(trace, nodes, job, prices):
        yield bought.sentence(choice, job)


def costs_from(name: str, store: str | None) -> Costs:
    """Return what the run of this name measured.

    Raises:
        UserError: there is no such run, or it has not come to a step here.
    """
    runs = RunStore(open_store(store or prepare.default_store()), name)
    run, status = existing_run(runs), read_status(runs)
    events: list[Event] = []
    for folder in foreground.node_folders(runs):
        with contextlib.suppress(FileNotFoundError):
            events += decode_events((folder / "events.jsonl").read_bytes())
    found = measured(events, run.world.gpus, begun_s=run.created)
    if status is None or not any(e["event"] == "step" for e in events):
        raise UserError(f"--costs-from {name}: no event of this run is on this machine; name one that trained here")
    return found


def replayed(args: argparse.Namespace, trace: traces.Trace) -> int:
    """Play the trace to a real run."""
    speed = args.speed or _DEFAULT_SPEED
    found = piece(trace, args.nodes, speed, args.notice)
    with _stage(args) as (store, work):
        rehearsed, recipe = _play(args, found, store, work, speed)
    policy = report.policy_of(recipe.snapshots, noticed=args.notice > 0, step_s=rehearsed.costs.step_at(found.most))
    lines = [
        report.Line("this rehearsal", rehearsed.account),
        *report.modelled(found.moves, rehearsed.took_s, rehearsed.costs, policy, found.least, name="model of it"),
    ]
    told = report.report(lines, rehearsed.costs, found.moves, rehearsed.took_s, speed, price(args))
    tell(args, told, trace)
    if rehearsed.outcome.state == "failed":
        say(f"the run failed: {rehearsed.outcome.message}")
        return 1
    return 130 if rehearsed.outcome.exit_code == 130 else 0


def _play(
    args: argparse.Namespace, found: Piece, store: str, work: Path, speed: float
) -> tuple[live.Rehearsed, Recipe]:
    """Prepare a run as `fglaunch RECIPE` does, and rehearse it."""
    world = elastic_world(found.least, found.most, args.gpus)
    run, notes = prepare.prepare(args.recipe, args.overrides, world, None)
    stage = RehearsalCluster(work, Path.cwd(), run)
    notes += foreground.check_start(run, stage, world, None)
    opened = open_store(store)
    notes += prepare.try_store(opened)
    for note in notes:
        say(note)
    say(f"rehearsal: {found.trace.end_s:,.0f} s, {speed:g} times as fast as the trace")
    runs = prepare.register(run, opened)
    for node in stage.nodes(run.name, found.most):
        stage.make_ready(node)
    display = make_display()
    try:
        ended = live.rehearse(run, runs, stage, world, found.most, found.moves, found.trace.end_s, args.notice, display)
    finally:
        display.close()
    return ended, run.recipe


def elastic_world(least: int, most: int, gpus: int) -> World:
    """Return a world of `least` to `most` nodes."""
    if least == most:
        return World(most, gpus)
    return World(least, gpus, most)


@contextlib.contextmanager
def _stage(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield where the run is kept and works: a store that was named, else a folder that goes again."""
    if args.store:
        yield args.store, work_root()
        return
    with tempfile.TemporaryDirectory(prefix="fglaunch-rehearsal-", ignore_cleanup_errors=True) as folder:
        yield f"file://{folder}/store", Path(folder) / "work"


def price(args: argparse.Namespace) -> float | None:
    """Return what a node costs an hour, where that is known."""
    if args.price is not None:
        return float(args.price)
    prices = terms_of(choose(None)).prices
    return prices.spot if prices else None


def tell(args: argparse.Namespace, told: report.Report, trace: traces.Trace, ways: Sequence[str] = ()) -> None:
    """Print a report, and below it how a deadline would be met."""
    found = traces.statistics(trace)
    if args.json:
        print(json.dumps(report.as_json(told, found) | {"deadline": list(ways)}, indent=1))
        return
    Console().print(report.table(told))
    print("\n".join([*report.sentences(told, found), *ways]))
