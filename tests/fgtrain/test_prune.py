"""What a policy keeps, and what pruning tells and does."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import Corrupt
from fgtrain.housekeeping import turn
from fgtrain.lineage import only_weights
from fgtrain.manifest import chunk_key, encode, manifest_name
from fgtrain.prune import Policy, choose, foresee_pruning, prune
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.fgtrain.test_stores import s3_store
from tests.testbed.s3 import S3Server
from tests.testbed.snapshots import take_snapshot

names = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 2)), unique=True, max_size=15).map(
    lambda pairs: [manifest_name(*p) for p in sorted(pairs)]
)


@given(names, st.data(), st.integers(1, 5), st.sampled_from([None, 1, 7, 10]))
def test_newest_that_verify_are_kept_and_counted(
    names: list[str], data: st.DataObject, keep: int, every: int | None
) -> None:
    sound = data.draw(st.sets(st.sampled_from(names))) if names else set[str]()
    kept = choose(names, sound.__contains__, Policy(keep, every), {})
    verified = sorted(sound)
    if not verified:
        assert list(kept) == names
        return
    assert set(verified[-keep:]) <= kept.keys()
    assert {n for n in names if n > verified[-1]} <= kept.keys()
    if every is None:
        assert kept.keys() == {n for n in names if n in verified[-keep:] or n > verified[-1]}
    else:
        steps = {int(n.split("-")[0]) for n in names}
        multiples = {s for s in steps if s and s % every == 0}
        assert multiples <= {int(n.split("-")[0]) for n in kept}


def test_first_at_or_past_each_multiple_is_kept() -> None:
    steps = [3, 5, 10, 15, 23, 27, 44, 45]
    kept = choose([manifest_name(s, 1) for s in steps], lambda n: True, Policy(1, 10), {})
    assert [int(n.split("-")[0]) for n in sorted(kept)] == [10, 23, 44, 45]


@pytest.fixture
def runs() -> RunStore:
    store = open_store(f"memory://{uuid.uuid4()}")
    store.put("runs/r/run.json", b'{"name": "r", "recipe": {"kind": "of a version to come"}}')
    return RunStore(store, "r")


def kept_steps(runs: RunStore) -> list[int]:
    return [int(n.split("-")[0]) for n in runs.manifest_names()]


def test_damaged_snapshots_do_not_count(runs: RunStore) -> None:
    for step in range(1, 6):
        take_snapshot(runs, step, b"same" + b"%04d" % step)
    for step in (3, 5):
        lost = runs.manifest(manifest_name(step, 1)).groups["model"].chunks[1]
        runs.store.put(chunk_key(lost), b"oops")
    with turn(runs.store) as mine:
        pruned = prune(mine, runs, Policy(2), 0)
    assert kept_steps(runs) == [2, 4, 5]  # 5 is damaged, and newer than any that verifies
    assert pruned.kept[manifest_name(5, 1)] == "newer than any that verifies"
    assert [s.step for s in pruned.removed] == [1, 3]


def test_nothing_goes_where_nothing_verifies(runs: RunStore) -> None:
    take_snapshot(runs, 1, b"aaaa")
    take_snapshot(runs, 2, b"aaaabbbb")
    runs.store.delete(chunk_key(runs.manifest(manifest_name(1, 1)).groups["model"].chunks[0]))
    with turn(runs.store) as mine, pytest.raises(Corrupt, match="none of the 2 snapshots of r verifies"):
        prune(mine, runs, Policy(1), 0)
    assert kept_steps(runs) == [1, 2]


def test_unreadable_manifest_is_kept_and_named(runs: RunStore) -> None:
    take_snapshot(runs, 1, b"aaaa")
    runs.store.put(runs.key("manifests/0000000002-00001"), b"torn")
    take_snapshot(runs, 3, b"bbbb")
    chunks = {e.key for e in runs.store.list("chunks/")}
    with turn(runs.store) as mine:
        pruned = prune(mine, runs, Policy(1), 0)
    assert kept_steps(runs) == [2, 3]
    assert "manifests/0000000002-00001" in (pruned.refused or "")
    assert {e.key for e in runs.store.list("chunks/")} == chunks


def test_what_another_run_began_with_stays_and_its_weights_outlive_their_run(runs: RunStore) -> None:
    parent = take_snapshot(runs, 1, b"aaaabbbb")
    take_snapshot(runs, 2, b"cccc")
    take_snapshot(runs, 3, b"dddd")
    child = RunStore(runs.store, "child")
    child.store.put("runs/child/run.json", b'{"name": "child", "init_from": "r@%s"}' % parent.name.encode())
    child.store.create("runs/child/parent", encode(only_weights(parent)))
    with turn(runs.store) as mine:
        pruned = prune(mine, runs, Policy(1), 0)
    assert kept_steps(runs) == [1, 3]
    assert pruned.kept[parent.name] == "child began with it"
    for key in [e.key for e in runs.store.list("runs/r/")]:
        runs.store.delete(key)
    take_snapshot(child, 1, b"eeee")
    with turn(runs.store) as mine:
        prune(mine, child, Policy(1), 0)
    assert all(child.get_chunk(c) for c in parent.chunks())
    assert len(list(runs.store.list("chunks/"))) == 3


def test_dry_run_tells_what_pruning_does_and_changes_nothing(runs: RunStore) -> None:
    for step in range(1, 5):
        take_snapshot(runs, step, b"same" + b"%04d" % step)
    runs.put_chunk(b"left by a killed saver")
    before = {e.key: e.bytes_ for e in runs.store.list()}
    foreseen = foresee_pruning(runs, Policy(2), 0)
    assert {e.key: e.bytes_ for e in runs.store.list()} == before
    assert [(s.step, s.bytes_) for s in foreseen.removed] == [(1, 4), (2, 4)]
    with turn(runs.store) as mine:
        assert prune(mine, runs, Policy(2), 0) == foreseen
    after = {e.key: e.bytes_ for e in runs.store.list("chunks/")}
    assert foreseen.collected is not None
    chunks = {k: b for k, b in before.items() if k.startswith("chunks/")}
    assert foreseen.collected.deleted.bytes_ == sum(chunks.values()) - sum(after.values()) == 30


def test_chunks_go_by_way_of_the_trash_and_can_be_read_there(runs: RunStore) -> None:
    old = take_snapshot(runs, 1, b"aaaa")
    [chunk] = old.chunks()
    with turn(runs.store) as mine:
        take_snapshot(runs, 2, b"bbbb")
        pruned = prune(mine, runs, Policy(1), -1)  # a second from now: all there is counts as old
    assert pruned.collected is not None
    assert pruned.collected.set_aside.objects == 1
    assert [e.key for e in runs.store.list("trash/")] == [f"trash/{chunk[:2]}/{chunk}"]
    assert runs.get_chunk(chunk) == b"aaaa"
    runs.check_size(chunk, 4)


def test_pruning_on_an_s3_server(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RunStore(s3_store(seaweedfs, monkeypatch), "r")
    runs.store.put("runs/r/run.json", b'{"name": "r"}')
    first = take_snapshot(runs, 1, b"aaaabbbb")
    take_snapshot(runs, 2, b"aaaacccc")
    with turn(runs.store) as mine:
        pruned = prune(mine, runs, Policy(1), -5)  # set aside what is younger than in five seconds
    assert pruned.collected is not None
    assert pruned.collected.set_aside.bytes_ == 4
    assert all(runs.get_chunk(c) for c in first.chunks())
    with turn(runs.store) as mine:
        pruned = prune(mine, runs, Policy(1), 0)
    assert pruned.collected is not None
    assert pruned.collected.deleted.bytes_ == 4
    assert sorted(e.bytes_ for e in runs.store.list()) == sorted([4, 4, *(e.bytes_ for e in runs.store.list("runs/"))])
