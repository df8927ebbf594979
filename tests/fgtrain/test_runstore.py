"""A run's corner of a store: attempts that fence, manifests in order, chunks that are verified."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from fgtrain.errors import Corrupt, KeyExists, KeyMissing
from fgtrain.manifest import Manifest
from fgtrain.plan import World, make_plan
from fgtrain.runstore import RunFile, RunStore, is_name, run_names
from fgtrain.stores import open_store
from tests.fgtrain.recipes import recipe
from tests.fgtrain.test_manifest import manifest

numbers = count()


@pytest.fixture
def runs() -> RunStore:
    return RunStore(open_store(f"memory://runstore-{next(numbers)}"), "run")


def run_file(name: str = "run") -> RunFile:
    one = recipe()
    return RunFile(
        name=name,
        created=0.0,
        recipe=one,
        recipe_digest="d",
        recipe_file="r.py",
        overrides=("a=b",),
        plan=make_plan(one, 100),
        world=World(1, 2),
        data_digest="x",
        cwd="/",
        code={},
        environment={},
    )


def test_run_file_is_read_back_as_it_was_written(runs: RunStore) -> None:
    runs.create("run.json", run_file())
    assert runs.read("run.json", RunFile) == run_file()


def test_second_run_of_a_name_is_refused(runs: RunStore) -> None:
    runs.create("run.json", run_file())
    with pytest.raises(KeyExists):
        runs.create("run.json", run_file())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": 3}', b"\xff", b'{"recipe": {"data": {"kind": "nope"}}}'])
def test_object_that_is_not_what_was_written_is_corrupt(runs: RunStore, data: bytes) -> None:
    runs.store.put(runs.key("run.json"), data)
    with pytest.raises(Corrupt, match=r"runs/run/run\.json"):
        runs.read("run.json", RunFile)


def test_run_of_a_part_that_is_not_there_any_more_is_corrupt(runs: RunStore) -> None:
    runs.create("run.json", run_file())
    whole = runs.store.get(runs.key("run.json"))
    runs.store.put(runs.key("run.json"), whole.replace(b'"kind":"digits"', b'"kind":"gone"'))
    with pytest.raises(Corrupt, match="no part called 'gone'"):
        runs.read("run.json", RunFile)


def test_each_attempt_is_taken_once_by_one_of_many(runs: RunStore) -> None:
    taken: list[int] = []
    racers = [threading.Thread(target=lambda: taken.append(runs.take_attempt(0, 1).attempt)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(240)
    assert sorted(taken) == list(range(1, 9))
    assert runs.attempts() == list(range(1, 9))


def test_commits_are_listed_by_step_and_read_newest_first(runs: RunStore) -> None:
    for step, attempt in ((20, 1), (10, 1), (10, 2)):
        runs.commit(manifest(step, attempt))
    found = [(m.step, m.attempt) for m in runs.manifests_newest_first() if isinstance(m, Manifest)]
    assert found == [(20, 1), (10, 2), (10, 1)]
    assert runs.newest_step() == 20


def test_run_without_a_commit_has_no_newest_step(runs: RunStore) -> None:
    assert runs.newest_step() == -1


def test_unreadable_manifest_is_reported_and_passed_over(runs: RunStore) -> None:
    runs.commit(manifest(10))
    runs.commit(manifest(20))
    runs.store.put(runs.key(f"manifests/{manifest(20).name}"), b"rubbish")
    newest, older = runs.manifests_newest_first()
    assert isinstance(newest, Corrupt)
    assert manifest(20).name in str(newest)
    assert older == manifest(10)


def test_step_is_committed_once_an_attempt(runs: RunStore) -> None:
    runs.commit(manifest())
    with pytest.raises(KeyExists):
        runs.commit(manifest())


def test_chunk_is_read_back_and_a_damaged_one_is_noticed(runs: RunStore) -> None:
    digest = runs.put_chunk(b"contents")
    assert runs.get_chunk(digest) == b"contents"
    runs.store.put(f"chunks/{digest[:2]}/{digest}", b"content")
    with pytest.raises(Corrupt, match="not what was written"):
        runs.get_chunk(digest)
    with pytest.raises(Corrupt, match="missing"):
        runs.get_chunk("0" * 64)


def test_log_is_the_lines_of_all_its_segments(runs: RunStore) -> None:
    from msgspec.structs import replace

    from fgtrain.manifest import Segment

    chunks = [runs.put_chunk(line) for line in (b"1\n", b"2\n3\n")]
    segments = (Segment(0, 1, chunks[0], 2), Segment(1, 3, chunks[1], 4))
    assert runs.log_lines(replace(manifest(), logs={"samples": segments}), "samples") == b"1\n2\n3\n"
    assert runs.log_lines(manifest(), "nothing") == b""


def test_runs_of_a_store_are_those_with_a_run_file(runs: RunStore) -> None:
    for name in ("b", "鸟-1"):
        RunStore(runs.store, name).create("run.json", run_file(name))
    RunStore(runs.store, "half").write("status.json", {})
    assert run_names(runs.store) == ["b", "鸟-1"]


def test_missing_objects_are_told_from_present_ones(runs: RunStore) -> None:
    assert not runs.exists("stop")
    runs.write("stop", {"asked": 1})
    assert runs.exists("stop")
    with pytest.raises(KeyMissing):
        runs.read("run.json", RunFile)


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "0", "鸟类", "_x", "a" * 100])
def test_name_is_taken(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "a:b", "a" * 101, "鸟" * 70, "../x", "*"]
)
def test_name_is_refused(name: str) -> None:
    assert not is_name(name)
