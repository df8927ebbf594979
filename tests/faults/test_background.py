"""What goes wrong beside training does not stop it: uploaders that die, stores that hang, disks that are full."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain.recipe import Snapshots
from tests.testbed.runs import wait_for
from tests.testbed.s3 import S3Server
from tests.testbed.s3_proxy import Lose, Request, s3_proxy
from tests.testbed.small_disk import small_disk
from tests.testbed.toy.job import MICRO_BATCHES, Job
from tests.testbed.toy.runs import Nursery, ToyRun, lineage, nursery

pytestmark = pytest.mark.train

MIB = 1 << 20
STATE_BYTES = 3 * MIB  # about, all of which changes but the frozen part


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("memory")) as toys:
        yield toys


def job(folder: Path, **changes: object) -> Job:
    plain = {"store": f"file://{folder}/store", "work": str(folder / "work"), "nodes": 2, "gpus": 1, "restarts": 0}
    return Job(**{**plain, **changes})  # type: ignore[arg-type]


def stop(run: ToyRun) -> None:
    run.job.stop.touch()
    assert run.wait_ended() == 0, run.log()


def assert_whole(run: ToyRun) -> None:
    """All that is committed verifies, and the newest commit's log misses and repeats nothing."""
    runs = run.runs
    names = runs.manifest_names()
    assert names
    for name in names:
        for chunk in runs.manifest(name).chunks():
            runs.get_chunk(chunk)
    last = runs.manifest(names[-1]).step
    assert lineage(runs) == [(s, g) for s in range(last) for g in range(MICRO_BATCHES)]


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_uploader_is_counted_and_replaced(toys: Nursery, tmp_path: Path, rank: int) -> None:
    run = toys.start(job(tmp_path))
    run.wait_event("snapshot")
    first = wait_for(lambda: run.uploader(rank), "there is an uploader")
    # Stopped first, so that it surely dies with something in hand.
    run.hit(first, signal.SIGSTOP)
    commits, skipped = len(run.events("snapshot")), run.notes().count("no room for a snapshot")
    wait_for(lambda: run.notes().count("no room for a snapshot") > skipped + 1, "nothing is stored any more")
    run.hit(first)
    if rank == 0:
        run.wait_note("so far): the uploader process died")
    run.wait_event("snapshot", commits + 3)
    second = run.uploader(rank)
    assert second not in (None, first)
    stop(run)
    assert len(run.events("attempt")) == 1
    assert run.events("snapshot")[-1]["step"] == run.events("did")[-1]["step"]
    assert_whole(run)


def test_store_that_never_answers_stops_no_step(toys: Nursery, tmp_path: Path, localbucket: S3Server) -> None:
    with s3_proxy(localbucket.endpoint) as proxy:
        env = {**localbucket.env, "AWS_ENDPOINT_URL": proxy.endpoint}
        store = f"s3://{localbucket.bucket}/{tmp_path.name}"
        run = toys.start(job(tmp_path, store=store, env=env, final_s=2.0))
        run.wait_event("snapshot")

        def hang(request: Request) -> Lose | None:
            return Lose.PATIENCE

        proxy.reset(hang)
        run.wait_note("no room for a snapshot, skipped (3 so far)")
        run.wait_steps(200)
        assert len(run.events("attempt")) == 1
        stop(run)
        assert "not stored after 2 s" in run.notes() or "not committed within 2 s" in run.notes()
        assert run.events("end")[-1]["step"] == run.events("did")[-1]["step"]


def test_worker_killed_goes_on_from_memory_without_a_chunk(toys: Nursery, tmp_path: Path) -> None:
    run = toys.start(job(tmp_path, restarts=1, snapshots=Snapshots(steps=20, memory_steps=2)))
    run.wait_event("snapshot")

    def held_well_after_a_snapshot() -> bool:
        run.hit(run.worker(1), signal.SIGSTOP)  # and with it the other one, a step on at most
        if 4 < run.in_memory(2) % 20 < 16:
            return True  # so that the store's next one cannot be under way
        run.hit(run.worker(1), signal.SIGCONT)
        return False

    wait_for(held_well_after_a_snapshot, "memory is ahead of the store")
    run.hit(run.pid, signal.SIGSTOP)
    run.hit(run.worker(1))
    wait_for(lambda: not run.below(), "the attempt ends")
    best = run.in_memory(2)
    assert best > run.committed()
    chunks, away = tmp_path / "store" / "chunks", tmp_path / "away"
    chunks.rename(away)
    run.hit(run.pid, signal.SIGCONT)
    begun = run.wait_event("attempt", 2)
    assert (begun["tier"], begun["step"]) == ("memory", best)
    run.wait_event("snapshot", len(run.events("snapshot")) + 1)
    stop(run)
    for file in away.glob("*/*"):  # the older log lines
        target = chunks / file.relative_to(away)
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            file.rename(target)
    assert_whole(run)


def test_full_store_is_told_and_survived(toys: Nursery, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * STATE_BYTES) as disk:
        run = toys.start(job(tmp_path, store=f"file://{disk.folder}/store"))
        run.wait_event("snapshot")
        disk.fill()
        run.wait_note("(3 so far): ")
        assert "the disk is full" in run.notes()
        run.wait_steps(20)
        run.committed()  # whatever is committed verifies
        commits = len(run.events("snapshot"))
        disk.resize(400 * STATE_BYTES)
        run.wait_event("snapshot", commits + 2)
        stop(run)
        assert len(run.events("attempt")) == 1
        assert_whole(run)


def test_snapshots_that_keep_failing_end_the_run_if_asked_to(toys: Nursery, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 400 * STATE_BYTES) as disk:
        when = Snapshots(steps=7, memory_steps=2, fail_after=3)
        run = toys.start(job(tmp_path, store=f"file://{disk.folder}/store", snapshots=when))
        run.wait_event("snapshot")
        wait_for(disk.lock, "nothing is being written just now")  # a full one has room again for what failed before
        assert run.wait_ended() == 1
        # Or more, where several were heard of at once.
        assert re.search(r"UserError: \d+ snapshots in a row failed \(snapshots.fail_after=3\), the last: ", run.log())


def test_memory_that_cannot_hold_the_arena_is_left_for_the_disk(toys: Nursery, tmp_path: Path) -> None:
    with small_disk(tmp_path / "memory", 2 * STATE_BYTES) as disk:
        run = toys.start(job(tmp_path, restarts=1, env={"FGLAUNCH_MEMORY": str(disk.folder)}))
        run.wait_event("snapshot", 2)
        assert f"{run.job.work}/node0/memory/" in run.notes()
        assert "cannot hold" in run.notes()
        run.hit(run.pid, signal.SIGSTOP)
        run.hit(run.worker(0))
        wait_for(lambda: not run.below(), "the attempt ends")
        best = max(run.in_memory(2), run.committed())
        assert run.in_memory(2) > 0
        run.hit(run.pid, signal.SIGCONT)
        assert run.wait_event("attempt", 2)["step"] == best
        stop(run)
        assert_whole(run)


def test_memory_that_fills_up_later_stops_nothing(toys: Nursery, tmp_path: Path) -> None:
    """The state grows after a few steps, and log lines all the time; then there is no room for either."""
    with small_disk(tmp_path / "memory", 20 * STATE_BYTES) as disk:
        run = toys.start(job(tmp_path, env={"FGLAUNCH_MEMORY": str(disk.folder)}))
        run.wait_event("snapshot", 2)
        # Again and again: what is replaced by less leaves room.
        wait_for(lambda: disk.fill() or "No space left on device" in run.notes(), "somebody finds no room")
        run.wait_steps(20)
        disk.folder.joinpath("filler").unlink()
        commits = len(run.events("snapshot"))
        run.wait_event("snapshot", commits + 2)
        stop(run)
        assert_whole(run)
