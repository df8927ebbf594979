"""The training loop: from the newest snapshot to the recipe's last step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fgtrain import finish, lease, loader, singles
from fgtrain.bits import settle_kernels
from fgtrain.cache.together import ready_together
from fgtrain.data import Index
from fgtrain.evaluate import Evaluations
from fgtrain.fit import settle_plan
from fgtrain.heap import keep_freed_memory
from fgtrain.journal import Journal
from fgtrain.oom import make_ladder
from fgtrain.phases import Phases
from fgtrain.place import Place, agree, from_leader
from fgtrain.profiler import make_profiler
from fgtrain.pulse import Phase, Pulse
from fgtrain.recipe import Recipe
from fgtrain.runstore import Attempt, RunFile, RunStore
from fgtrain.snapshot import inherit, load
from fgtrain.snapshot.control import Control
from fgtrain.snapshot.memory import memory_folders, rank_folder
from fgtrain.snapshot.save import Saver
from fgtrain.snapshot.upload import Fenced
from fgtrain.step import Stepper


def train(
    run: RunFile,
    index: Index,
    runs: RunStore,
    place: Place,
    folder: Path,
    *,
    begun: Callable[[Attempt], None],
    stop_asked: Callable[[], bool],
    phases: Phases | None = None,
    save_asked: Callable[[], bool] = lambda: False,
    pulse: Pulse | None = None,
) -> bool:
    """Train to the end, or to a step boundary after some rank was asked to stop.

    Args:
        run: what to do.
        index: the data set's samples.
        runs: where snapshots are.
        place: this process's place; all ranks call together.
        folder: this node's working folder.
        begun: told this attempt, before the first step.
        stop_asked: whether this rank has been asked to stop.
        phases: the stopwatch of this attempt's start.
        save_asked: whether it has been asked, since last asked about, for a snapshot ahead of time.
        pulse: where this rank shows that it moves.

    Returns:
        Whether the recipe's last step is committed, and evaluated.

    Raises:
        Fenced: another attempt goes on.
    """
    recipe, plan, phases = run.recipe, run.plan, phases or Phases()
    pulse = pulse or Pulse()
    journal = Journal(folder, place)
    if not ready_together(recipe, index, runs.store.url, place, pulse, stop_asked, journal):
        return False
    pulse.phase(Phase.RESTORE)

    def note(text: str) -> None:
        journal.event("note", text=text)

    _settle(recipe, place, note)
    state = recipe.strategy.build(recipe, place)
    phases.end("build")
    memory = memory_folders(run.name, folder, run.identity)
    restored = load.newest(runs, place, memory, note)
    parent = inherit.parent_of(run, runs, place)
    if restored:
        state.load(restored.tensors, restored.values)
        journal.recover(restored.lines)
    elif parent:
        inherit.take_weights(parent, run, runs, place, state)
    phases.end("restore")
    attempt = _take_attempt(runs, state.step, place)
    begun(attempt)
    pulse.begun(attempt.attempt, attempt.step)
    tier = restored.tier if restored else ""
    journal.event("attempt", attempt=attempt.attempt, step=state.step, steps=plan.steps, world=place.size, tier=tier)
    plan, fitted = settle_plan(run, runs, place, state, note)
    singles.check(recipe, plan)
    saver = Saver(
        runs,
        place,
        attempt.attempt,
        [rank_folder(m, attempt.attempt, place.rank) for m in memory],
        slots=recipe.snapshots.slots,
        copies=recipe.snapshots.copies,
        determinism=recipe.determinism,
        last=restored.base if restored else None,
        verified=bool(restored and restored.verified),
        inherited=frozenset(parent.chunks()) if parent else frozenset(),
        note=note,
    )
    committed = restored.base.step if restored and restored.base else 0
    del restored
    snapshots = Control(recipe.snapshots, saver, runs, place, journal, state.buffers())
    ladder = make_ladder(recipe, plan, fitted, runs, place, note)
    profiler = make_profiler(run.profile, runs, place, folder, note)
    stepper = Stepper(recipe, plan, place, state, pulse, ladder, profiler)
    batches = loader.training_batches(
        recipe, plan, index.train, start=state.step, rank=place.rank, size=place.size, gpu=place.device.type == "cuda"
    )
    evaluations = Evaluations(recipe, plan, index.val, state, place, journal, stop_asked, pulse, ladder)
    batches = phases.first("batch", batches)
    phases.end("prepare")
    journal.begin()
    late = evaluations.due  # the last attempt had no time for it
    stop = not evaluations.settle()
    while state.step < plan.steps and not stop:
        wishes = snapshots.wishes(state.step + 1, stop=stop_asked(), save=save_asked())
        report = stepper.step(batches, wishes, before_update=snapshots.drain)
        journal.step(state.step, plan.epoch_at(state.step), report)
        journal.phases(attempt.attempt, phases)
        state.bad_images |= dict(report.bad)
        stop = report.wishes.stop or not evaluations.settle()
        if not stop and state.step < plan.steps:
            with profiler.span("snapshot"):
                snapshots.after_step(state, report.wishes)
        profiler.stepped(state.step, last=stop or state.step == plan.steps)
    pulse.phase(Phase.FINISH)
    done = state.step == plan.steps and not evaluations.due
    if state.step > committed or (late and not evaluations.due):
        snapshots.last(state, required=done)
    saver.close()
    if done:
        profiler.run_ends()
    if done and place.leads:
        finish.publish(run, runs, state, journal)
    agree(torch.zeros(1))  # nobody leaves early: if one fails now, all begin again
    journal.close()
    return done


def _take_attempt(runs: RunStore, step: int, place: Place) -> Attempt:
    """Become the newest attempt, together, unless the run goes on elsewhere: this one would only void that one.

    Raises:
        Fenced: it does.
    """
    mine = place.leads and not lease.superseded(runs)
    attempt = from_leader(runs.take_attempt(step, place.size) if mine else None, place)
    if attempt is None:
        raise Fenced(f"{runs.run} goes on under another supervisor, and not with what its last one has started")
    return attempt


def _settle(recipe: Recipe, place: Place, note: Callable[[str], None]) -> None:
    """Have this process compute as the recipe wants it, and as fast as that allows for."""
    if place.device.type == "cpu":
        keep_freed_memory()
    if recipe.determinism == "bits":
        settle_kernels()
        note("determinism=bits: deterministic kernels, one CPU thread a process")
    else:
        torch.backends.cudnn.benchmark = True  # shapes are few: kernels are tried out once for each
