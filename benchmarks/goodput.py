"""Goodput on a replayed spot trace: ours, torchrun with torch.save, and what could be had at best. One table.

    .venv/bin/python -m benchmarks.goodput [--trace FILE] [--settle S] [--interval S] [--notice S] [--model NAME]

Costs are measured first, here: a real run of ours on two nodes of this machine, one of them killed with -9 now and
then (`fglaunch rehearse` does the same), another that shrinks and grows (1:2), whose costs the scenario that may do so
has, and the same network under torchrun, one of its workers killed. Then a trace
of real spot nodes is gone through with the model of `launcher.rehearse`, whose error on the real run is printed too.
The step is the same for all, so that the table shows nothing but what interruptions cost.

(a) torchrun + torch.save at a fixed interval   (b) the same at the best fixed interval, in hindsight
(c) the offline optimum: it knows all losses, snapshots right before each, and restarts in no time

Bar: ours >= 0.95 of (c). torchrun's own costs are taken at their best (`benchmarks.goodput_peer`),
and its nodes always come back to it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks.goodput_peer import Peer
from benchmarks.goodput_peer import measure as measure_peer
from benchmarks.synthetic import write_folder
from benchmarks.table import conditions, render
from cluster import Node
from fgtrain.errors import FglaunchError, UserError
from fgtrain.plan import World
from fgtrain.recipe import Snapshots
from fgtrain.stores import open_store
from launcher.display import PlainDisplay
from launcher.events import Event
from launcher.prepare import prepare, register
from launcher.rehearse import traces
from launcher.rehearse.account import Account, Stretch, account, stretches
from launcher.rehearse.costs import Costs, measured
from launcher.rehearse.model import Policy, best_interval, optimum, simulate
from launcher.rehearse.replay import RehearsalCluster
from launcher.rehearse.report import policy_of
from launcher.rehearse.slots import Moves, places
from launcher.supervisor import Supervisor

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.95
_PEER_KILLS = 3
_REPLACED = (((1,), (1,)), ((0,), (0,)), ((1,), (1,)))  # lost, and another at once in its place
_SHRUNK = (((1,), ()), ((), (1,)), ((1,), ()), ((), (1,)))  # lost; later one joins
STOCK = Policy(memory=False, planned_joins=False)


class Scenario(NamedTuple):
    """A run on a trace: with fewer than `least` nodes it waits, more than `most` it does not take."""

    least: int
    most: int

    @property
    def name(self) -> str:
        """As `--nodes` takes it."""
        return str(self.most) if self.least == self.most else f"{self.least}:{self.most}"


Move = tuple[tuple[int, ...], tuple[int, ...]]
"""Which nodes are lost, which come."""

SCENARIOS = (Scenario(8, 8), Scenario(16, 16), Scenario(8, 32))


# -- measuring ------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What a run of ours was seen to cost, where its time went, and when it lost which nodes, in seconds of its own."""

    costs: Costs
    account: Account
    moves: list[Moves]


class Losses:
    """Takes the place of a display: whenever an attempt has trained for a while, the next of some moves is made."""

    def __init__(
        self,
        stage: RehearsalCluster,
        nodes: Sequence[Node],
        script: Sequence[Move],
        settle_s: float,
        at_end: Callable[[], None],
    ) -> None:
        self._stage, self._nodes, self._settle_s, self._at_end = stage, nodes, settle_s, at_end
        self._script = list(script)
        self._shown = PlainDisplay()
        self._due: float | None = None
        self.events: list[Event] = []
        self.begun = time.time()
        self.moves = [Moves(0.0, (), (0, 1))]

    def __call__(self, event: Event) -> None:
        """Hear an event of the run."""
        self.events.append(event)
        self._shown(event)
        if event["event"] == "attempt":
            self._due = event["time"] + self._settle_s
        if event["event"] == "step" and self._due is not None and event["time"] >= self._due:
            self._due = None
            self._act()

    def _act(self) -> None:
        if not self._script:
            self._at_end()
            return
        lost, filled = self._script.pop(0)
        self.moves.append(Moves(time.time() - self.begun, lost, filled))
        for place in lost:
            self._stage.lose(self._nodes[place])
        for place in filled:
            self._stage.come(self._nodes[place])


def measure_ours(
    args: argparse.Namespace, folder: Path, world: World, script: Sequence[Move], settle_s: float
) -> Measured:
    """Run ours for real on two nodes, which are lost and come as the script says.

    Raises:
        UserError: it failed.
    """
    write_folder(folder / "pictures", train=256, side=args.image)
    settings = [
        *(f"data.root={folder / 'pictures'}", f"model.name={args.model}", f"data.crop={args.image - 16}"),
        *(f"data.resize={args.image}", "epochs=1e5", "evaluate.every_epochs=0"),
    ]
    run, _ = prepare(str(ROOT / "benchmarks" / "synthetic_recipe.py"), settings, world, None)
    stage = RehearsalCluster(folder / "work", ROOT, run)
    nodes = stage.nodes(run.name, world.most)
    for node in nodes:
        stage.make_ready(node)
        stage.come(node)
    runs = register(run, open_store(f"file://{folder}/store"))
    losses = Losses(stage, nodes, script, settle_s, at_end=lambda: runs.write("stop", {"asked": time.time()}))
    outcome = Supervisor(run, runs, stage.name, stage, world, losses, None).supervise()
    if outcome.state != "stopped" or outcome.exit_code:
        raise UserError(f"ours did not come through: {outcome.message}")
    costs, attempts = measured(losses.events, 1, begun_s=losses.begun), stretches(losses.events)
    spent = account(attempts, losses.begun, attempts[-1].ended_s, [], costs.step, attempts[-1].last)
    return Measured(with_joins(costs, attempts), spent, losses.moves)


def with_joins(costs: Costs, attempts: Sequence[Stretch]) -> Costs:
    """Tell apart what it costs to lose a node and to have one join, where a run has shrunk and grown."""
    gaps: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    for a, b in pairwise(attempts):
        gaps[(b.world > a.world) - (b.world < a.world)].append(max(0.0, b.begun_s - a.ended_s))
    restart = median(gaps[-1]) if gaps[-1] else costs.restart
    join = median(gaps[1]) if gaps[1] else costs.join
    return msgspec.structs.replace(costs, restart=restart, join=join)


def costs_in(scenario: Scenario, fixed: Costs, elastic: Costs) -> Costs:
    """Return what things cost in a scenario: a run that may shrink does not wait for the next node to start."""
    if scenario.least == scenario.most:
        return fixed
    return msgspec.structs.replace(fixed, restart=elastic.restart, join=elastic.join)


# -- the trace ------------------------------------------------------------------------------------------------------


def ways(
    scenario: Scenario, trace: traces.Trace, costs: Costs, peer: Peer, interval_s: float, notice_s: float
) -> Iterator[tuple[str, Account]]:
    """Yield each way to run and what the model makes of it; the optimum comes last."""
    least, end_s = scenario.least, trace.end_s
    moves = places(trace, scenario.most)
    ours = msgspec.structs.replace(costs, step={scenario.most: next(iter(costs.step.values()))})
    stock = Costs(
        step=ours.step, stall=peer.save_s, latency=peer.save_s, drag=0.0, detect=0.0, restart=peer.restart_s,
        start=ours.start,
    )  # fmt: skip
    policy = policy_of(Snapshots(), noticed=False, step_s=ours.step_at(scenario.most))
    noticed = places(traces.noticed(trace, notice_s), scenario.most)
    yield "ours", simulate(moves, end_s, ours, policy, least)
    yield f"ours, {notice_s:g} s notice", simulate(noticed, end_s, ours, policy._replace(noticed=True), least)
    at, found = best_interval(moves, end_s, ours, policy, least)
    yield f"ours, best interval ({at:.0f} s)", found
    yield (
        f"(a) torch.save every {interval_s:g} s",
        simulate(moves, end_s, stock, STOCK._replace(interval_s=interval_s), least),
    )
    at, found = best_interval(moves, end_s, stock, STOCK, least)
    yield f"(b) best interval ({at:.0f} s)", found
    yield "(c) offline optimum", optimum(moves, end_s, ours, least)


def rows(scenario: Scenario, accounts: Sequence[tuple[str, Account]]) -> Iterator[list[str]]:
    """Lay out a scenario's lines."""
    best = accounts[-1][1]
    for name, a in accounts:
        yield [
            f"{scenario.name} nodes: {name}",
            f"{a.goodput:.3f}",
            f"{a.goodput / best.goodput:.3f}",
            f"{a.steps / best.steps:.3f}",
            *(f"{seconds:,.0f}" for seconds in (a.lost_s, a.restart_s, a.overhead_s, a.waiting_s)),
            str(a.restarts),
        ]


def verdict(all_accounts: Sequence[Sequence[tuple[str, Account]]]) -> tuple[float, str]:
    """Return ours, without notices, against the optimum in the worst scenario, and a sentence on the bar."""
    blind, told = (min(a[i][1].goodput / a[-1][1].goodput for a in all_accounts) for i in (0, 1))
    met, also = ("met" if ratio >= BAR else "missed" for ratio in (blind, told))
    return blind, f"bar: ours >= {BAR:g} of (c): {met} ({blind:.3f} at worst); with notices {also} ({told:.3f})"


def limits(scenario: Scenario, accounts: Sequence[tuple[str, Account]]) -> str:
    """Say where the time goes that ours does not train in."""
    ours = accounts[0][1]
    spent = {"restarts": ours.restart_s, "snapshots and copies": ours.overhead_s, "steps taken again": ours.lost_s}
    words = [f"{what} {s / ours.available_s:.1%}" for what, s in sorted(spent.items(), key=lambda e: -e[1])]
    ratio = ours.goodput / accounts[-1][1].goodput
    return f"{scenario.name} nodes: {ratio:.3f} of (c), {'met' if ratio >= BAR else 'missed'}; {', '.join(words)}"


def spell_peer(peer: Peer, patience_s: float) -> str:
    """Say what torchrun's run cost."""
    text = f"torchrun: save {peer.save_s:.2f} s, worker killed to first step {peer.restart_s:.1f} s"
    again = f"the whole job had to be started again after {peer.jobs} of {peer.kills} kills"
    if not peer.jobs:
        return f"{text} ({again})"
    return f"{text}; {again}, for no step in {patience_s:g} s: {peer.waited_s:.1f} s with that, which is not counted"


def against_model(found: Measured) -> str:
    """Say how far the model is off on the run that was measured."""
    policy = policy_of(Snapshots(), noticed=False, step_s=found.costs.step_at(2))
    modelled = simulate(found.moves, found.account.total_s, found.costs, policy, 2).goodput
    return f"the model on the measured run: goodput {modelled:.3f}, seen {found.account.goodput:.3f}"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.goodput", description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, metavar="FILE", help="default: bamboo_p3.csv of the test data")
    parser.add_argument("--model", default="resnet18", help="timm network (default: %(default)s)")
    parser.add_argument("--image", type=int, default=96, help="pixels of a picture's side (default: %(default)s)")
    parser.add_argument(
        "--settle", type=float, default=15.0, metavar="S", help="of training before a loss (default: 15)"
    )
    parser.add_argument("--interval", type=float, default=600.0, metavar="S", help="of (a) (default: %(default)s)")
    parser.add_argument(
        "--notice", type=float, default=120.0, metavar="S", help="ahead of a loss (default: %(default)s)"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="until torchrun's job is started again (default: 60)"
    )
    return parser.parse_args(argv)


def default_trace() -> Path:
    """Return where the Bamboo trace is beside this checkout, or in $FGLAUNCH_TEST_DATA."""
    data = os.environ.get("FGLAUNCH_TEST_DATA") or ROOT.parent / "shared" / "data"
    return Path(data) / "traces" / "bamboo_p3.csv"


def main() -> int:
    """Measure, model and print; 1 if the bar is missed."""
    args = arguments()
    print(conditions(("torch", "timm")))
    try:
        trace = traces.read_trace(args.trace or default_trace())
        with tempfile.TemporaryDirectory() as name:
            found = measure_ours(args, Path(name) / "fixed", World(2, 1), _REPLACED, args.settle)
            elastic = measure_ours(args, Path(name) / "elastic", World(1, 1, 2), _SHRUNK, args.settle / 2).costs
            peer = measure_peer(Path(name) / "peer", args.model, args.image - 16, _PEER_KILLS, args.patience)
    except FglaunchError as error:
        print(f"benchmarks.goodput: {error}", file=sys.stderr)
        return 2
    c = found.costs
    print(
        f"measured: step {next(iter(c.step.values())):.3f} s; ours: stall {c.stall * 1e3:.1f} ms, commit after"
        f" {c.latency:.2f} s, copy {c.copy * 1e3:.1f} ms, node killed to first step {c.detect + c.restart:.1f} s"
        f" with another in its place, {elastic.restart:.1f} s where the rest goes on, a join {elastic.join:.1f} s;"
        f" {spell_peer(peer, args.patience)}"
    )
    print(against_model(found))
    told = traces.statistics(trace)
    print(f"trace: {told.hours:.1f} h, {told.least} to {told.most} nodes, {told.interruptions} interruptions\n")
    all_accounts = [list(ways(s, trace, costs_in(s, c, elastic), peer, args.interval, args.notice)) for s in SCENARIOS]
    headers = ["", "goodput", "of (c)", "steps of (c)", "lost s", "restart s", "overhead s", "waiting s", "restarts"]
    print(render(headers, [r for s, a in zip(SCENARIOS, all_accounts, strict=True) for r in rows(s, a)]))
    ratio, sentence = verdict(all_accounts)
    print("", *(limits(s, a) for s, a in zip(SCENARIOS, all_accounts, strict=True)), sentence, sep="\n")
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
