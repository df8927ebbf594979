"""The training loop: from the newest snapshot to the recipe's last step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from fgtrain import finish, loader
from fgtrain.data import Index
from fgtrain.ema import MovingAverage
from fgtrain.errors import StoreError
from fgtrain.evaluate import evaluate
from fgtrain.freeze import train_mode
from fgtrain.journal import Journal
from fgtrain.keyed import key
from fgtrain.manifest import Manifest
from fgtrain.optimizer import build_optimizer, build_scaler
from fgtrain.place import Place, from_leader
from fgtrain.recipe import Recipe
from fgtrain.runstore import Attempt, RunFile, RunStore
from fgtrain.snapshot import load
from fgtrain.snapshot.save import Saver
from fgtrain.state import State
from fgtrain.step import Stepper


def build_state(recipe: Recipe, device: torch.device) -> State:
    """Make the state that a run starts from: a function of the recipe alone."""
    torch.manual_seed(key("weights", recipe.seed))
    net = recipe.model.build().to(device)
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = MovingAverage(net, recipe.ema.decay) if recipe.ema else None
    return State(net, build_optimizer(recipe, net), build_scaler(recipe, device), ema)


def train(
    run: RunFile,
    index: Index,
    runs: RunStore,
    place: Place,
    folder: Path,
    *,
    begun: Callable[[Attempt], None],
    stop_asked: Callable[[], bool],
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

    Returns:
        Whether the recipe's last step is committed.
    """
    recipe, plan = run.recipe, run.plan
    journal = Journal(folder, place)
    state = build_state(recipe, place.device)
    found = load.newest(runs, place, lambda text: journal.event("note", text=text))
    last = found[0] if found else None
    if found:
        state.load(found[1], found[0].values)
        del found
    attempt = from_leader(runs.take_attempt(state.step, place.size) if place.leads else None, place)
    assert attempt is not None
    begun(attempt)
    journal.event("attempt", attempt=attempt.attempt, step=state.step, steps=plan.steps, world=place.size)
    saver = Saver(runs, place, attempt, recipe.determinism, last)
    stepper = Stepper(recipe, plan, place, state)
    clock = _SnapshotClock(recipe, place)
    batches = loader.training_batches(
        recipe,
        plan,
        index.train,
        start=state.step,
        rank=place.rank,
        size=place.size,
        pin=place.device.type == "cuda",
    )
    journal.begin()
    stop = False
    while state.step < plan.steps and not stop:
        report = stepper.step(batches, stop=stop_asked(), save=clock.due(state.step + 1))
        journal.step(state.step, plan.epoch_at(state.step), report)
        stop, done = report.stop, state.step == plan.steps
        state.bad_images |= dict(report.bad)
        if plan.evaluates_after(state.step):
            result = evaluate(recipe, index.val, state, place)
            train_mode(state.net)
            state.best = max(state.best, {"step": state.step, **result}, key=lambda r: r.get("top1", -1.0))
            journal.evaluation(state.step, plan.epoch_at(state.step), result)
        if report.save or stop or done:
            last = _snapshot(saver, state, journal, required=done) or last
            clock.restart()
    if state.step == plan.steps and place.leads:
        assert last is not None
        finish.publish(run, runs, state, last, journal)
    journal.close()
    return state.step == plan.steps


def _snapshot(saver: Saver, state: State, journal: Journal, *, required: bool) -> Manifest | None:
    """Take a snapshot; one that the store fails is reported and lost, unless it is `required`."""
    started = time.perf_counter()
    lines = journal.take_lines()
    try:
        manifest = saver.save(state.step, state.tensors(), state.values(), lines)
    except StoreError as error:
        journal.give_back(lines)
        journal.event("note", text=f"snapshot of step {state.step} failed: {error}")
        if required:
            raise
        return None
    journal.event(
        "snapshot",
        step=manifest.step,
        bytes_new=manifest.bytes_new,
        bytes_shared=manifest.bytes_shared,
        seconds=round(time.perf_counter() - started, 3),
    )
    return manifest


class _SnapshotClock:
    """Says when a snapshot is due; time is rank 0's."""

    def __init__(self, recipe: Recipe, place: Place) -> None:
        self._when = recipe.snapshots
        self._leads = place.leads
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        """Tell whether to take a snapshot after `step` steps."""
        if self._when.steps and step % self._when.steps == 0:
            return True
        return self._leads and self._when.seconds is not None and time.monotonic() - self._since >= self._when.seconds
