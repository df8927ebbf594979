"""A rank's end of its uploader: what dies with one is told to the rank that commits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain.runstore import RunStore
from fgtrain.snapshot.protocol import Abandon, Failed, Persist
from fgtrain.snapshot.uploader import Start
from fgtrain.snapshot.uploads import Uploads
from fgtrain.stores import open_store
from tests.testbed.runs import wait_for


class Rank:
    """A rank of a run, with an uploader."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.runs = RunStore(open_store(f"file://{folder}/store"), "run")
        self._folder, self._rank = str(folder), rank
        self._lists = folder / "store" / "runs" / "run" / "parts"
        start = Start(
            store=self.runs.store.url,
            run="run",
            memory=str(folder),
            attempt=1,
            rank=rank,
            parent=os.getpid(),
            last=None,
            verified=False,
            host="127.0.0.1",
            token="",
        )
        self.uploads = Uploads(start)

    def lose(self, step: int) -> None:
        """Kill the uploader before it has done what it was asked for."""
        os.kill(self.uploads.pid, signal.SIGSTOP)
        self.persist(step)
        os.kill(self.uploads.pid, signal.SIGKILL)
        self.hear()

    def persist(self, step: int) -> None:
        self.uploads.order(Persist(self._folder, f"slot{step}", step, False))

    def hear(self) -> None:
        """Wait until an order has failed."""
        assert isinstance(wait_for(self.uploads.report, "an order fails"), Failed)

    def kill_idle(self) -> None:
        """Kill an uploader that owes no answer, and wait until that is known."""
        os.kill(self.uploads.pid, signal.SIGKILL)
        wait_for(lambda: self.uploads.dead, "its end is known")

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Let no uploader tell rank 0 anything, however long it lives: a file lies where its word would."""
        self._lists.parent.mkdir(parents=True, exist_ok=True)
        self._lists.touch()
        yield
        self._lists.unlink()

    def given_up(self) -> list[str]:
        """Return the steps that rank 0 was told not to wait for; the uploader is alive."""
        self.uploads.order(Abandon(99, "", "to hear that it is at work"))
        self.hear()
        keys = [e.key for e in self.runs.store.list(self.runs.key("parts/"))]
        assert all(k.endswith(f"/{self._rank:05d}.failed") for k in keys)
        return [str(int(k.split("/")[-2].split("-")[0])) for k in keys if "0000000099-" not in k]


@pytest.fixture
def rank(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rank]:
    found = Rank(tmp_path, getattr(request, "param", 1))
    yield found
    found.uploads.close()


@pytest.mark.parametrize(("rank", "told"), [(1, ["7", "9"]), (0, [])], indirect=["rank"])
def test_shares_that_die_with_an_uploader_are_given_up_by_the_next(rank: Rank, told: list[str]) -> None:
    rank.lose(7)
    rank.persist(9)  # nobody is there
    rank.hear()
    rank.uploads.ensure(None)
    assert rank.given_up() == told


def test_shares_are_given_up_though_the_next_uploader_dies_before_it_could(rank: Rank) -> None:
    rank.lose(7)
    with rank.unheard():
        rank.uploads.ensure(None)
        rank.kill_idle()
    assert rank.uploads.report() is None, "no order failed, of which the rank would hear"
    rank.uploads.mend(None)
    assert rank.given_up() == ["7"]


def test_what_was_given_up_is_no_reason_for_another_uploader(rank: Rank) -> None:
    rank.lose(7)
    rank.uploads.ensure(None)
    assert rank.given_up() == ["7"]
    pid = rank.uploads.pid
    rank.kill_idle()
    rank.uploads.mend(None)
    assert rank.uploads.pid == pid


def test_uploaders_that_die_at_once_are_not_started_for_ever(rank: Rank) -> None:
    rank.lose(7)
    pids = set[int]()
    with rank.unheard():
        rank.uploads.ensure(None)
        for _ in range(8):
            pids.add(rank.uploads.pid)
            if not rank.uploads.dead:
                rank.kill_idle()
            rank.uploads.mend(None)
    assert len(pids) == 6, "the one that followed the first, and five more"
    rank.uploads.ensure(None)
    assert rank.given_up() == ["7"]
