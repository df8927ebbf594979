"""A collection and the real uploader, one inside the other, at every request boundary; and kills at every boundary."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fgtrain.collect import collect
from fgtrain.errors import Corrupt, FglaunchError, StoreUnavailable
from fgtrain.housekeeping import HOLD_S, turn
from fgtrain.prune import Policy, prune
from fgtrain.runstore import RunStore
from fgtrain.snapshot.upload import Uploader
from fgtrain.stores.memory import MemoryStore
from fgtrain.verify import Verifier, by_bytes
from tests.testbed.faulty_store import Fault, FaultyStore, drawn
from tests.testbed.snapshots import WatchedStore, staged_share, take_snapshot

GRACE_S = 100.0
OLD, NEW = b"aaaabbbb", b"aaaaccccdddd"

_names = itertools.count()


class Scene:
    """A run with one old snapshot, and next to it garbage that a save is about to write anew."""

    def __init__(self, folder: Path) -> None:
        self.time = 1e6
        self.store = MemoryStore(f"race-{next(_names)}", clock=lambda: self.time)
        self.runs = RunStore(self.store, "r")
        self.store.put("runs/r/run.json", b'{"name": "r"}')
        self.runs.take_attempt(0, 1)
        self.last = take_snapshot(self.runs, 1, OLD)
        for piece in (b"cccc", b"dddd", b"eeee"):
            self.runs.put_chunk(piece)
        self.time += 10 * GRACE_S
        self.folder = folder

    def save(self, runs: RunStore) -> None:
        uploader = Uploader(runs, self.folder, 1, 0, self.last, trusted=frozenset(self.last.chunks()))
        header = staged_share(self.folder, "r", 2, NEW, attempt=1, base=self.last.name)
        uploader.store_share(header)
        uploader.commit(header)

    def collect(self, store: WatchedStore | MemoryStore) -> None:
        with turn(store, lambda: self.time) as mine:
            collect(mine, GRACE_S, streams=1)

    def assert_all_loads(self) -> None:
        names = self.runs.manifest_names()
        assert len(names) == 2
        for name in names:
            verifier = Verifier(self.runs, by_bytes)
            assert verifier.problem(self.runs.manifest(name)) is None

    def assert_loads_for_ever(self) -> None:
        self.assert_all_loads()
        for _ in range(2):
            self.time += 2 * GRACE_S
            self.collect(self.store)
            self.assert_all_loads()
        assert len(list(self.store.list("chunks/"))) == 5  # aaaa, bbbb, cccc, dddd and the log line
        assert not list(self.store.list("trash/"))


def requests_of(scene: Scene, act: str) -> int:
    """Return how many requests the undisturbed act takes."""
    seen: list[str] = []
    watched = WatchedStore(scene.store, lambda operation, key: seen.append(operation))
    scene.save(RunStore(watched, "r")) if act == "save" else scene.collect(watched)
    return len(seen)


def at(number: int, act: object) -> object:
    """Do something once, before the request of this number."""
    count = itertools.count()

    def before(operation: str, key: str) -> None:
        if next(count) == number:
            act()  # type: ignore[operator]

    return before


def test_save_inside_a_collection_is_kept_whole(tmp_path: Path) -> None:
    total = requests_of(Scene(tmp_path), "collect")
    assert total > 10
    for number in range(total):
        scene = Scene(tmp_path)
        scene.collect(WatchedStore(scene.store, at(number, lambda s=scene: s.save(s.runs))))
        scene.assert_loads_for_ever()


def test_collection_inside_a_save_takes_nothing_of_it(tmp_path: Path) -> None:
    total = requests_of(Scene(tmp_path), "save")
    assert total > 5
    for number in range(total):
        scene = Scene(tmp_path)
        watched = WatchedStore(scene.store, at(number, lambda s=scene: s.collect(s.store)))
        scene.save(RunStore(watched, "r"))
        scene.assert_loads_for_ever()


def test_killed_pruning_leaves_only_what_loads(tmp_path: Path) -> None:
    killed = 0
    for number in range(200):
        scene = Scene(tmp_path)
        scene.save(scene.runs)
        scene.time += 10 * GRACE_S
        try:
            watched = WatchedStore(scene.store, at_and_after(number))
            with turn(watched, lambda s=scene: s.time) as mine:
                prune(mine, RunStore(watched, "r"), Policy(1), GRACE_S, streams=1)
        except StoreUnavailable:
            killed += 1
        for name in scene.runs.manifest_names():
            assert Verifier(scene.runs, by_bytes).problem(scene.runs.manifest(name)) is None
        assert scene.runs.manifest_names()[-1] == "0000000002-00001"
        scene.time += HOLD_S + 1
        for _ in range(2):
            scene.time += 2 * GRACE_S
            with turn(scene.store, lambda s=scene: s.time) as mine:
                prune(mine, scene.runs, Policy(1), GRACE_S, streams=1)
        assert scene.runs.manifest_names() == ["0000000002-00001"]
        assert {e.key.rsplit("/", 1)[1] for e in scene.store.list("chunks/")} == set(
            scene.runs.manifest("0000000002-00001").chunks()
        )
        if number >= killed:
            break
    assert killed > 15


def at_and_after(number: int) -> object:
    """Fail every request from this number on: what a killed process does."""
    count = itertools.count()

    def before(operation: str, key: str) -> None:
        if next(count) >= number:
            raise StoreUnavailable("killed")

    return before


@pytest.mark.parametrize("seed", range(40))
def test_failing_store_never_costs_a_snapshot(tmp_path: Path, seed: int) -> None:
    scene = Scene(tmp_path)
    scene.save(scene.runs)
    scene.time += 10 * GRACE_S
    faulty = FaultyStore(scene.store, drawn(seed, 0.15, Fault.REFUSED, Fault.LOST, Fault.STALE))
    for _ in range(12):
        scene.time += HOLD_S + 1
        try:
            with turn(faulty, lambda: scene.time) as mine:
                prune(mine, RunStore(faulty, "r"), Policy(1), GRACE_S, streams=1)
        except FglaunchError:
            pass
        name = scene.runs.manifest_names()[-1]
        assert name == "0000000002-00001"
        assert Verifier(scene.runs, by_bytes).problem(scene.runs.manifest(name)) is None
    assert faulty.injected


def test_manifest_that_cannot_be_read_stops_collections_everywhere(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.store.put("runs/other/manifests/0000000001-00001", b"of another format")
    before = {e.key for e in scene.store.list()}
    with pytest.raises(Corrupt, match="runs/other/manifests/0000000001-00001"):
        scene.collect(scene.store)
    with turn(scene.store, lambda: scene.time) as mine:
        pruned = prune(mine, scene.runs, Policy(1), GRACE_S)
    assert pruned.collected is None
    assert "runs/other/manifests/0000000001-00001" in (pruned.refused or "")
    assert {e.key for e in scene.store.list()} == before


def test_grace_is_told_by_the_clock_of_the_store(tmp_path: Path) -> None:
    """The store's clock is decades behind this machine's: nothing here is old to it."""
    scene = Scene(tmp_path)
    scene.runs.put_chunk(b"new!")
    with turn(scene.store) as mine:
        done = collect(mine, GRACE_S)
    assert done.young.objects == 1
    assert done.set_aside.objects == 3
