"""Pruning: which snapshots of a run to delete, and deleting them.

What counts is a snapshot that verifies, every byte read: the newest N of those stay, hence always the one that the next
recovery takes and that a living saver builds upon. A snapshot newer than all of them stays too: it cannot be loaded as
it is, but a commit that nobody understands yet is no garbage. Manifests are deleted before their chunks, the oldest
first, so a pruning that is killed leaves only snapshots that load and chunks that the next collection takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fgtrain import manifest as manifests
from fgtrain.collect import Collected, collect, foresee
from fgtrain.errors import Corrupt
from fgtrain.housekeeping import Turn
from fgtrain.lineage import step_of
from fgtrain.manifest import Manifest
from fgtrain.references import STREAMS, references
from fgtrain.runstore import RunStore, run_names
from fgtrain.stores import Store
from fgtrain.verify import Verifier, by_bytes


class Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that goes. `bytes_`: what only snapshots that go refer to; counted once, with the newest of them."""

    key: str
    step: int
    attempt: int
    bytes_: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What a pruning did, or would do.

    `kept` gives the reason for each snapshot's name. `refused` tells why no chunk was collected; then `collected` is
    None.
    """

    kept: dict[str, str]
    removed: tuple[Doomed, ...]
    collected: Collected | None
    refused: str | None


class Policy(msgspec.Struct, frozen=True):
    """Keep the newest `keep` snapshots that verify, and the first at or past each multiple of `every` steps."""

    keep: int
    every: int | None = None


def prune(turn: Turn, runs: RunStore, policy: Policy, grace_s: float, streams: int = STREAMS) -> Pruned:
    """Delete the snapshots of a run that `policy` does not keep, and then the garbage of the whole store.

    What the run has abandoned goes too. A snapshot that another run began with stays. `streams` requests at a time.

    Raises:
        Corrupt: none of the run's snapshots verifies, so nothing was deleted.
        StoreError: the store failed half-way; nothing that was to stay is lost.
    """
    kept, doomed = _judge(runs, policy, streams)
    removed = _weigh(runs.store, doomed, streams)
    for snapshot in removed:
        turn.keep()
        runs.store.delete(snapshot.key)
    try:
        collected, refused = collect(turn, grace_s, streams), None
    except Corrupt as error:
        collected, refused = None, str(error)
    return Pruned(kept=kept, removed=tuple(removed), collected=collected, refused=refused)


def foresee_pruning(runs: RunStore, policy: Policy, grace_s: float) -> Pruned:
    """Tell what `prune` would do; nothing is changed.

    Raises:
        Corrupt, StoreError: see `prune`.
    """
    kept, doomed = _judge(runs, policy, STREAMS)
    removed = _weigh(runs.store, doomed, STREAMS)
    try:
        collected, refused = foresee(runs.store, grace_s, without=frozenset(doomed)), None
    except Corrupt as error:
        collected, refused = None, str(error)
    return Pruned(kept=kept, removed=tuple(removed), collected=collected, refused=refused)


def choose(
    names: Sequence[str], sound: Callable[[str], bool], policy: Policy, pinned: Mapping[str, str]
) -> dict[str, str]:
    """Return which of a run's snapshots stay, and why. Pure but for `sound`.

    Args:
        names: of all its snapshots, rising.
        sound: tells whether a snapshot verifies; asked from the newest down, no longer than needed.
        policy: what to keep.
        pinned: the snapshots that other runs began with, and one run that did each.
    """
    kept = {n: f"{run} began with it" for n, run in pinned.items() if n in names}
    newest = 0
    for name in reversed(names):
        if newest == policy.keep:
            break
        if sound(name):
            newest += 1
            kept.setdefault(name, "the newest" if newest == 1 else f"one of the newest {policy.keep}")
        elif not newest:
            kept.setdefault(name, "newer than any that verifies")
    for name in _milestones(names, policy.every):
        kept.setdefault(name, f"the first at or past a multiple of {policy.every} steps")
    return kept if newest else dict.fromkeys(names, "none verifies")


def _milestones(names: Sequence[str], every: int | None) -> list[str]:
    """Return the first snapshot at or past each multiple; of several attempts at its step, the newest."""
    first: dict[int, str] = {}
    for name in names if every else ():
        assert every
        multiple = step_of(name) // every
        if multiple and step_of(first.setdefault(multiple, name)) == step_of(name):
            first[multiple] = name
    return list(first.values())


def _judge(runs: RunStore, policy: Policy, streams: int) -> tuple[dict[str, str], dict[str, Manifest]]:
    """Return why what stays does so, by name, and what goes, by key."""
    names = runs.manifest_names()
    readable, unreadable = _read_all(runs, [f"manifests/{n}" for n in names])
    verifier = Verifier(runs, by_bytes, streams)

    def sound(name: str) -> bool:
        manifest = readable.get(f"manifests/{name}")
        return manifest is not None and verifier.problem(manifest) is None

    pinned = _pinned(runs)
    kept = choose(names, sound, policy, pinned)
    if names and all(reason == "none verifies" for reason in kept.values()):
        raise Corrupt(f"none of the {len(names)} snapshots of {runs.run} verifies; nothing was pruned")
    kept |= {key.split("/")[1]: f"cannot be read: {problem}" for key, problem in unreadable.items()}
    doomed = {k: m for k, m in readable.items() if m.name not in kept}
    abandoned, _ = _read_all(runs, [f"abandoned/{n}" for n in runs.abandoned_names()])
    doomed |= {k: m for k, m in abandoned.items() if m.name not in pinned}
    return kept, {runs.key(k): m for k, m in doomed.items()}


def _read_all(runs: RunStore, keys: Sequence[str]) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Read manifests; returns those that can be read, and why the others cannot."""
    found: dict[str, Manifest] = {}
    problems: dict[str, str] = {}
    for key in keys:
        try:
            found[key] = manifests.decode(runs.store.get(runs.key(key)))
        except Corrupt as error:
            problems[key] = str(error)
    return found, problems


class _Origin(msgspec.Struct, frozen=True):
    """What matters here of a `run.json`, whose recipe may be made of parts that only its own machine has."""

    name: str
    init_from: str | None = None


def _pinned(runs: RunStore) -> dict[str, str]:
    """Return the names of this run's snapshots that other runs began with, and one run that did each."""
    origins = [RunStore(runs.store, name).read("run.json", _Origin) for name in run_names(runs.store)]
    begun = [(o.init_from.split("@"), o.name) for o in origins if o.init_from]
    return {snapshot: name for (parent, snapshot), name in begun if parent == runs.run}


def _weigh(store: Store, doomed: Mapping[str, Manifest], streams: int) -> list[Doomed]:
    """Work out what each snapshot that goes would free, oldest first."""
    stays: set[str] = set()
    try:
        for reference in references(store, streams):
            if reference.key not in doomed:
                stays |= reference.manifest.chunks().keys()
    except Corrupt:  # nothing will be collected, so nothing is freed
        return [_doomed(k, m, 0) for k, m in sorted(doomed.items(), key=lambda d: d[1].name)]
    weighed = []
    for key, manifest in sorted(doomed.items(), key=lambda d: d[1].name, reverse=True):
        own = {c: b for c, b in manifest.chunks().items() if c not in stays}
        weighed.append(_doomed(key, manifest, sum(own.values())))
        stays |= own.keys()
    return weighed[::-1]


def _doomed(key: str, manifest: Manifest, bytes_: int) -> Doomed:
    return Doomed(key=key, step=manifest.step, attempt=manifest.attempt, bytes_=bytes_)
