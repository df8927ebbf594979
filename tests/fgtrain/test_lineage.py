"""Naming snapshots, adopting another run's weights, going back."""

from __future__ import annotations

import uuid

import pytest

from fgtrain.errors import UserError
from fgtrain.housekeeping import turn
from fgtrain.lineage import abandon_after, find, nearest, split_reference
from fgtrain.manifest import chunk_key, manifest_name
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.snapshots import WatchedStore, take_snapshot


@pytest.fixture
def runs() -> RunStore:
    runs = RunStore(open_store(f"memory://{uuid.uuid4()}"), "cub-1")
    runs.store.put("runs/cub-1/run.json", b"{}")
    for step in (5, 10, 20, 30, 40):
        take_snapshot(runs, step, b"%04d" % step)
    return runs


def steps(names: list[str]) -> list[int]:
    return [int(n.split("-")[0]) for n in names]


@pytest.mark.parametrize("text", ["", "@3", "run@", "run@x", "run@3-", "run@-1", "run@1@2"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write RUN, RUN@STEP"):
        split_reference(text)


def test_references_name_snapshots(runs: RunStore) -> None:
    take_snapshot(runs, 20, b"x020", attempt=2)
    found = {
        text: find(runs.store, text)[1].name for text in ("cub-1", "cub-1@20", "cub-1@20-1", "cub-1@0000000020-00002")
    }
    assert found == {
        "cub-1": manifest_name(40, 1),
        "cub-1@20": manifest_name(20, 2),
        "cub-1@20-1": manifest_name(20, 1),
        "cub-1@0000000020-00002": manifest_name(20, 2),
    }


def test_newest_that_is_whole_is_meant(runs: RunStore) -> None:
    [chunk] = runs.manifest(manifest_name(40, 1)).chunks()
    runs.store.put(chunk_key(chunk), b"torn!")
    runs.store.put(runs.key("manifests/" + manifest_name(50, 1)), b"not a manifest")
    assert find(runs.store, "cub-1")[1].step == 30
    with pytest.raises(UserError, match="no snapshot that is whole"):
        find(runs.store, "cub-1@40")


def test_unknown_step_and_run_are_answered_with_what_there_is(runs: RunStore) -> None:
    with pytest.raises(UserError, match=r"no snapshot of step 22; the nearest are of steps 5, 10, 20, 30$"):
        find(runs.store, "cub-1@22")
    with pytest.raises(UserError, match="no run called cub-2 in .*; there are cub-1"):
        find(runs.store, "cub-2")
    assert nearest(7, [1, 5, 10, 100, 6, 8]) == [5, 6, 8, 10]


def test_going_back_sets_newer_snapshots_aside_and_keeps_them(runs: RunStore) -> None:
    runs.store.put(runs.key("result.json"), b"{}")
    with turn(runs.store) as mine:
        manifest, newer = abandon_after(mine, runs, 20)
    assert manifest.step == 20
    assert steps(runs.manifest_names()) == [5, 10, 20]
    assert steps(runs.abandoned_names()) == steps(newer) == [30, 40]
    assert not runs.exists("result.json")
    assert runs.fence() == 1


def test_killed_while_going_back_every_snapshot_is_still_there(runs: RunStore) -> None:
    class Killed(Exception):
        pass

    for number in range(60):
        left = [number]

        def before(operation: str, key: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        try:
            with turn(runs.store) as mine:
                abandon_after(mine, RunStore(WatchedStore(runs.store, before), "cub-1"), 20)
        except Killed:
            assert {*steps(runs.manifest_names()), *steps(runs.abandoned_names())} == {5, 10, 20, 30, 40}
            assert set(steps(runs.manifest_names())) >= {5, 10, 20}
        else:
            break
    assert number > 5
    assert steps(runs.manifest_names()) == [5, 10, 20]


def test_damaged_snapshot_is_not_gone_back_to(runs: RunStore) -> None:
    [chunk] = runs.manifest(manifest_name(20, 1)).chunks()
    runs.store.put(chunk_key(chunk), b"0021")
    with turn(runs.store) as mine, pytest.raises(UserError, match="step 20 does not verify"):
        abandon_after(mine, runs, 20)
    assert steps(runs.manifest_names()) == [5, 10, 20, 30, 40]
    assert runs.fence() == 0
