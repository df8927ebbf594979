"""`fglaunch resume RUN`: go on from the newest snapshot or an older one, on the same world or another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import RecipeError, UserError
from fgtrain.housekeeping import turn
from fgtrain.lineage import abandon_after
from fgtrain.overrides import apply
from fgtrain.parts import digest, leaves
from fgtrain.plan import chosen_world
from fgtrain.recipe import Recipe
from fgtrain.runstore import RunFile, RunStore, Spread
from fgtrain.snapshot.memory import forget, memory_folders
from fgtrain.stores import open_store
from launcher import foreground, limits, orphans, prepare, queued, supervision
from launcher.cli import STRATEGIES
from launcher.clusters import choose, find_cluster, find_queue, prices_on
from launcher.fleet import clear
from launcher.foreground import say
from launcher.ownership import owner_of, refuse_beside
from launcher.recipe_check import flaws
from launcher.recipe_file import load, split_target
from launcher.status import existing_run, live_state, read_status
from launcher.takeover import last_term


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    runs = RunStore(open_store(args.store or prepare.default_store()), args.run)
    run = existing_run(runs)
    status = read_status(runs)
    state = live_state(status, runs)
    if state == "running":
        raise UserError(f"{args.run} is running; `fglaunch attach {args.run}` watches it, `fglaunch stop` stops it")
    if state == "finished" and args.from_step is None:
        say(foreground.where_results_are(runs))
        return 0
    queued.refuse_second(run, runs)
    run = spread_anew(run, args.strategy)
    if not args.as_recorded:
        check_unchanged(run)
    world = chosen_world(run.world, args.nodes, args.gpus, args.spares, args.detect, args.engine)
    cluster_name = choose(args.cluster, status.cluster if status else None)
    cluster, queue = find_cluster(cluster_name, Path(run.cwd)), find_queue(cluster_name, Path(run.cwd))
    if queue:
        queued.check_world(world)
    asked = limits.asked(args)
    limits.check_priced(asked, prices_on(cluster_name, cluster))
    foreground.check_store(runs.store, cluster_name, cluster)
    notes = foreground.check_start(run, cluster, world, args.port, queued=queue is not None)
    check_data(run)
    notes += prepare.try_store(runs.store)
    settings = supervision.changed(supervision.recorded(runs), args.supervise)
    deadline = limits.set_limits(runs, asked).deadline is not None
    owner = owner_of(run, runs.store.url)
    if queue:
        refuse_beside(queue, owner)
    else:
        foreground.make_ready(run, runs, cluster_name, cluster, world, deadline=deadline)
    for note in notes:
        say(note)
    _record(runs, run, settings, args)
    earlier = last_term(runs)
    if earlier and earlier.cluster != cluster_name:
        orphans.leave(run, owner, earlier, lost=state == "lost")
    if args.from_step is not None:
        if earlier and earlier.cluster == cluster_name:  # what goes on without a supervisor would commit newer steps
            clear(cluster, owner, earlier.places)
        go_back(run, runs, args.from_step)
    return queued.start(queue, run, runs, cluster_name, world, args.port, args.detach)


def _record(runs: RunStore, run: RunFile, settings: supervision.Supervision, args: argparse.Namespace) -> None:
    """Keep what was said otherwise than before."""
    if args.strategy:
        runs.write("strategy.json", Spread(run.recipe.strategy))
    if args.supervise:
        runs.write(supervision.KEY, settings)


def spread_anew(run: RunFile, strategy: str | None) -> RunFile:
    """Let a run go on under the strategy that `--strategy` names, if it does; state and results are the same run's.

    Raises:
        UserError: it does not go together with the recipe.
    """
    if strategy is None:
        return run
    recipe = apply(run.recipe, STRATEGIES[strategy])
    if flaw := next(flaws(recipe), None):
        raise UserError(f"--strategy {strategy}: {flaw}")
    return msgspec.structs.replace(run, recipe=recipe)


def go_back(run: RunFile, runs: RunStore, step: int) -> None:
    """Set aside what is newer than the snapshot of a step, so that the run goes on from there.

    Raises:
        UserError: there is no snapshot of this step, none that verifies, or someone prunes just now.
    """
    with turn(runs.store) as mine:
        manifest, newer = abandon_after(mine, runs, step)
    limits.go_back(runs, manifest.step)
    for folder in foreground.node_folders(runs):  # a newer state in host memory must not win over the user's word
        for memory in memory_folders(runs.run, folder, run.identity):
            forget(memory)
    status = read_status(runs)
    if status:  # else a run that was finished would still be, were we killed before it starts
        gone_back = msgspec.structs.replace(status, state="stopped", step=manifest.step, message="", exit_code=None)
        runs.write("status.json", gone_back)
    say(f"{runs.run} goes on from step {manifest.step}; {len(newer)} newer snapshots are set aside")


def check_unchanged(run: RunFile) -> None:
    """Refuse to go on when the recipe's file no longer says what the run was begun with.

    A file that is gone is no obstacle: the run has its own record.

    Raises:
        UserError: names each value that differs.
    """
    path, _ = split_target(run.recipe_file)
    if not (Path(run.cwd) / path).exists():
        return
    try:
        now = load(str(Path(run.cwd) / run.recipe_file), run.overrides)
    except RecipeError as error:
        raise UserError(f"{error} (--as-recorded goes on with the recipe that {run.name} began with)") from error
    if digest(now) == run.recipe_digest:
        return
    raise UserError(
        f"{run.recipe_file} has changed since {run.name} began: {'; '.join(differences(run.recipe, now))}."
        " Add --as-recorded to go on with the recorded recipe, or start a new run"
    )


def check_data(run: RunFile) -> None:
    """Refuse to go on with other pictures than the run began with.

    Raises:
        UserError: they are gone, broken or others.
    """
    index, _ = usable(run.recipe.data, run.recipe.data.index())
    if index_digest(index) != run.data_digest:
        raise UserError(f"the data of {run.name} is not what it was when the run began; restore it or start a new run")


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the values that differ, each as `path: old, now new`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    paths = [p for p in before | after if before.get(p) != after.get(p)]
    return [f"{p}: {before.get(p, 'absent')}, now {after.get(p, 'absent')}" for p in paths]


def _flat(recipe: Recipe) -> list[tuple[str, Any]]:
    kinds = [(name, getattr(recipe, name)) for name in ("model", "data", "optim", "schedule", "strategy")]
    return [*((f"{n} kind", type(v).__name__) for n, v in kinds), *leaves(recipe)]
