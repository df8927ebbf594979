"""One housekeeper at a time."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from fgtrain.errors import StoreUnavailable, UserError
from fgtrain.housekeeping import HOLD_S, turn
from fgtrain.stores.memory import MemoryStore
from tests.testbed.snapshots import WatchedStore

_names = itertools.count()


class Clock:
    """A clock that is moved by hand; the store and the housekeepers share it."""

    def __init__(self) -> None:
        self.time = 1e6
        self.store = MemoryStore(f"turns-{next(_names)}", clock=self)

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_second_is_refused_until_the_first_is_done(clock: Clock) -> None:
    with turn(clock.store, clock), pytest.raises(UserError, match="someone else prunes"), turn(clock.store, clock):
        pass
    with turn(clock.store, clock):
        pass
    assert not list(clock.store.list())


def test_killed_holder_is_forgotten_in_time(clock: Clock) -> None:
    held = turn(clock.store, clock)
    held.__enter__()
    clock.time += HOLD_S - 1
    with pytest.raises(UserError), turn(clock.store, clock):
        pass
    clock.time += 1
    with turn(clock.store, clock):
        pass


def test_working_holder_keeps_its_turn(clock: Clock) -> None:
    with turn(clock.store, clock) as mine:
        for _ in range(20):
            clock.time += HOLD_S / 4
            mine.keep()
            with pytest.raises(UserError), turn(clock.store, clock):
                pass


def test_paused_holder_gives_up_before_another_can_take_over(clock: Clock) -> None:
    with turn(clock.store, clock) as mine:
        clock.time += HOLD_S / 2 + 1
        with pytest.raises(UserError), turn(clock.store, clock):
            pass
        with pytest.raises(StoreUnavailable, match="was paused"):
            mine.keep()


def test_of_two_at_once_never_both_hold(clock: Clock) -> None:
    outcomes = set()
    for number in range(5):
        holders: list[str] = []
        held = []  # a turn that nobody holds on to ends
        count = itertools.count()

        def second(operation: str, key: str) -> None:
            if next(count) == number:  # noqa: B023
                with contextlib.suppress(UserError):
                    other = turn(clock.store, clock)
                    other.__enter__()
                    held.append(other)  # noqa: B023
                    holders.append("second")  # noqa: B023

        with contextlib.suppress(UserError), turn(WatchedStore(clock.store, second), clock):
            holders.append("first")
        outcomes.add(tuple(holders))
        clock.time += 2 * HOLD_S
    assert outcomes <= {(), ("first",), ("second",), ("first", "second")}  # the last: when the first was done
    assert ("second",) in outcomes
    assert ("first",) in outcomes
