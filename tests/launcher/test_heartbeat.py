"""A supervisor that is busy for minutes still shows that it lives; one that is stuck, or was replaced, does not."""

from __future__ import annotations

import itertools
import time

from fgtrain.plan import World
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.clock import SystemClock
from launcher.heartbeat import Heartbeat
from launcher.outcome import Outcome
from launcher.post import Post
from launcher.status import read_status
from launcher.takeover import take_office
from tests.testbed.runs import wait_for

NUMBERS = itertools.count()


def office() -> tuple[RunStore, Post]:
    runs = RunStore(open_store(f"memory://heartbeat-{next(NUMBERS)}"), "run")
    return runs, Post(runs, take_office(runs, "lab", World(1, 1)), "lab", 40, SystemClock())


def updated(runs: RunStore) -> float:
    status = read_status(runs)
    assert status is not None
    return status.updated


def test_busy_supervisor_goes_on_beating() -> None:
    beats: list[float] = []
    began = time.monotonic()
    heart = Heartbeat(lambda: beats.append(time.monotonic()) or True, lambda: began, every_s=0.01)
    wait_for(lambda: len(beats) > 3, "it beats by itself")
    heart.stop()
    assert beats[0] - began >= 0.015


def test_supervisor_that_beats_itself_needs_nobody() -> None:
    asked: list[float] = []

    def last() -> float:
        asked.append(time.monotonic())
        return asked[-1]

    beats: list[bool] = []
    heart = Heartbeat(lambda: not beats.append(True), last, every_s=0.01)
    wait_for(lambda: len(asked) > 5, "it looks")
    heart.stop()
    assert beats == []


def test_stuck_supervisor_is_not_stood_in_for() -> None:
    asked: list[bool] = []
    long_ago = time.monotonic() - 11.0

    def last() -> float:
        asked.append(True)
        return long_ago

    beats: list[bool] = []
    heart = Heartbeat(lambda: not beats.append(True), last, every_s=0.01, at_most_s=10.0)
    wait_for(lambda: len(asked) > 5, "it looks")
    heart.stop()
    assert beats == []


def test_replaced_supervisor_stops_beating() -> None:
    beats: list[bool] = []
    heart = Heartbeat(lambda: bool(beats.append(True)), lambda: time.monotonic() - 1.0, every_s=0.01)
    heart.wait(240)
    assert beats == [True]


def test_status_has_no_beat_after_the_last_word() -> None:
    runs, post = office()
    assert post.beat(7, [])
    first = updated(runs)
    assert post.again()
    assert updated(runs) > first
    post.write(Outcome("finished", 0), 40, [])
    assert not post.again()
    status = read_status(runs)
    assert status is not None
    assert (status.state, status.step) == ("finished", 40)
    post.rest()


def test_who_was_replaced_writes_nothing() -> None:
    runs, post = office()
    assert post.beat(7, [])
    post.rest()  # else it may beat by itself before it is replaced
    first = updated(runs)
    take_office(runs, "lab", World(1, 1))
    assert not post.again()
    assert updated(runs) == first
