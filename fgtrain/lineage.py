"""Naming snapshots (`RUN`, `RUN@STEP`, `RUN@STEP-ATTEMPT`), beginning from one, and setting the newer ones aside."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from fgtrain import manifest as manifests
from fgtrain import stores
from fgtrain.errors import Corrupt, KeyExists, KeyMissing, UserError
from fgtrain.housekeeping import Turn
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunFile, RunStore, run_names
from fgtrain.stores import Store
from fgtrain.verify import Verifier, by_bytes, by_size

WEIGHTS = ("model", "ema")
"""What the names of weight tensors begin with: the network's own, and their moving average."""
_NEAREST = 4


def split_reference(text: str) -> tuple[str, str | None]:
    """Split `RUN[@STEP]` or `RUN@STEP-ATTEMPT` into the run and the rest.

    Raises:
        UserError: it is neither.
    """
    run, at, which = text.partition("@")
    if not run or (at and not re.fullmatch(r"\d+(-\d+)?", which)):
        raise UserError(f"{text!r}: write RUN, RUN@STEP or RUN@STEP-ATTEMPT")
    return run, which if at else None


def find(store: Store, text: str) -> tuple[RunStore, Manifest]:
    """Find the snapshot that `RUN[@STEP]` names: the newest that is whole, of all or of this step.

    Whole means that every chunk is there in its full size; its bytes are verified when they are read.

    Raises:
        UserError: no such run, or no such snapshot; names the nearest steps.
    """
    run, which = split_reference(text)
    runs = RunStore(store, run)
    if not runs.exists("run.json"):
        names = run_names(store)
        raise UserError(
            f"no run called {run} in {store.url}" + (f"; there are {', '.join(names[-5:])}" if names else "")
        )
    names = candidates(runs, which)
    verifier = Verifier(runs, by_size)
    problem = "there is none"
    for name in reversed(names):
        try:
            manifest = runs.manifest(name)
            problem = f"{name}: {verifier.problem(manifest)}"
        except Corrupt as error:
            problem = f"{name}: {error}"
            continue
        if verifier.problem(manifest) is None:
            return runs, manifest
    raise UserError(f"{text}: no snapshot that is whole ({problem})")


def candidates(runs: RunStore, which: str | None) -> list[str]:
    """Return the names of the snapshots that `STEP` or `STEP-ATTEMPT` names, rising; all of them for None.

    Raises:
        UserError: there is none; names the nearest steps.
    """
    names = runs.manifest_names()
    if which is None:
        return names
    step, _, attempt = which.partition("-")
    found = [n for n in names if step_of(n) == int(step) and (not attempt or int(n.split("-")[1]) == int(attempt))]
    if not found:
        near = nearest(int(step), {step_of(n) for n in names})
        there = f"the nearest are of steps {', '.join(map(str, near))}" if near else "there is none at all"
        raise UserError(f"{runs.run} has no snapshot of step {which}; {there}")
    return found


def step_of(name: str) -> int:
    """Return the step in a manifest's name."""
    return int(name.split("-")[0])


def nearest(step: int, steps: Iterable[int]) -> list[int]:
    """Return the few steps that are closest to one, rising."""
    return sorted(sorted(steps, key=lambda s: (abs(s - step), s))[:_NEAREST])


# -- beginning from another run's weights -------------------------------------------------------------------------


def only_weights(manifest: Manifest) -> Manifest:
    """Return what is left of a manifest without optimizer state, values and logs: what another run begins with."""
    tensors = {n: t for n, t in manifest.tensors.items() if n.split("/")[0] in WEIGHTS}
    groups = {g: manifest.groups[g] for g in {t.group for t in tensors.values()}}
    return msgspec.structs.replace(manifest, groups=groups, tensors=tensors, values={}, logs={})


def adopt(run: RunFile, runs: RunStore) -> Manifest | None:
    """Return the weights that a run begins with, None if it begins with its own.

    The first call keeps a manifest of them as the run's own, `parent`: from then on they outlive whatever happens to
    the run they came from.

    Raises:
        UserError: they were pruned before the run could begin.
        Corrupt: the manifest cannot be read.
    """
    if run.init_from is None:
        return None
    try:
        return manifests.decode(runs.store.get(runs.key("parent")))
    except KeyMissing:
        pass
    parent, name = run.init_from.split("@")
    try:
        manifest = only_weights(RunStore(runs.store, parent).manifest(name))
    except KeyMissing:
        raise UserError(
            f"--init-from {run.init_from}: this snapshot is there no more; start from another one"
        ) from None
    try:
        runs.store.create(runs.key("parent"), manifests.encode(manifest))
    except KeyExists:  # another supervisor of this run did it
        return manifests.decode(runs.store.get(runs.key("parent")))
    return manifest


# -- going on from an older snapshot ------------------------------------------------------------------------------


def abandon_after(turn: Turn, runs: RunStore, step: int) -> tuple[Manifest, list[str]]:
    """Set aside all snapshots newer than the one of `step`, so that the run goes on from there.

    Savers of earlier attempts are fenced first: none can commit behind our back. The newest goes first, and is copied
    before it is deleted: killed half-way, the run would go on from one of the newer snapshots; call again.

    Returns:
        The snapshot of `step`, and the names of those that were set aside, rising.

    Raises:
        UserError: there is no snapshot of this step, or none that verifies.
    """
    manifest = _sound(runs, step)
    runs.raise_fence(step)
    newer = [n for n in runs.manifest_names() if n > manifest.name]
    runs.store.delete(runs.key("result.json"))  # what it tells of is abandoned; the supervisor believes it
    for name in reversed(newer):
        turn.keep()
        stores.copy(runs.store, runs.key(f"manifests/{name}"), runs.key(f"abandoned/{name}"))
        runs.store.delete(runs.key(f"manifests/{name}"))
    return manifest, newer


def _sound(runs: RunStore, step: int) -> Manifest:
    """Return the newest snapshot of a step whose every byte verifies."""
    verifier = Verifier(runs, by_bytes)
    problem = ""
    for name in reversed(candidates(runs, str(step))):
        try:
            manifest = runs.manifest(name)
            problem = verifier.problem(manifest) or ""
        except Corrupt as error:
            problem = str(error)
        if not problem:
            return manifest
    raise UserError(f"{runs.run}: the snapshot of step {step} does not verify ({problem})")
