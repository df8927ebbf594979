"""Where a run's time went, and what things cost, from its events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.events import Event
from launcher.rehearse.account import Account, Stretch, account, stretches
from launcher.rehearse.costs import Costs, measured, step_seconds


def attempt(time: float, number: int, step: int, world: int = 2) -> Event:
    return {"event": "attempt", "time": time, "attempt": number, "step": step, "world": world, "steps": 100}


def step(time: float, number: int) -> Event:
    return {"event": "step", "time": time, "step": number}


KILLED_ONCE = [
    attempt(10.0, 1, 0),
    *(step(10.0 + i, i) for i in range(1, 11)),
    attempt(30.0, 2, 8),
    *(step(30.0 + i, 8 + i) for i in range(1, 13)),
]


def test_attempts_are_stretches() -> None:
    assert stretches(KILLED_ONCE[::-1]) == [Stretch(10, 20, 0, 10, 2), Stretch(30, 42, 8, 20, 2)]


def test_time_of_a_run_that_was_killed_once() -> None:
    short = [(22.0, 25.0)]
    found = account(stretches(KILLED_ONCE), 0.0, 50.0, short, {2: 1.0}, done=20)
    assert found == Account(20.0, 2.0, 10 + 7 + 8, 0.0, 3.0, 20, 2, 1)
    assert found.total_s == 50
    assert found.goodput == pytest.approx(20 / 47)


def test_what_was_not_kept_in_the_end_is_lost() -> None:
    found = account(stretches(KILLED_ONCE), 0.0, 42.0, [], {2: 0.5}, done=15)
    assert (found.steps, found.lost_steps) == (15, 7)
    assert found.overhead_s == pytest.approx(11.0)


def test_run_that_never_began_was_all_restart() -> None:
    found = account([], 0.0, 9.0, [(0.0, 4.0)], {}, done=0)
    assert (found.restart_s, found.waiting_s, found.goodput) == (5.0, 4.0, 0.0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Stretch], float, list[tuple[float, float]], int]:
    """Attempts, when the run ended, when nodes were short, and the last step kept."""
    clock, at, runs, short = 0.0, 0, [], []
    for _ in range(draw(st.integers(0, 5))):
        gap, taken, seconds = draw(st.floats(0, 50)), draw(st.integers(0, 40)), draw(st.floats(0.1, 100))
        if draw(st.booleans()):
            short.append((clock + gap * 0.25, clock + gap * 0.75))
        first = draw(st.integers(0, at))
        runs.append(Stretch(clock + gap, clock + gap + seconds, first, first + taken, draw(st.integers(1, 3))))
        clock, at = clock + gap + seconds, first + taken
    return runs, clock + draw(st.floats(0, 20)), short, draw(st.integers(0, at))


@given(histories(), st.dictionaries(st.integers(1, 3), st.floats(0.01, 10)))
def test_no_second_is_counted_twice_or_forgotten(
    history: tuple[list[Stretch], float, list[tuple[float, float]], int], step_s: dict[int, float]
) -> None:
    runs, ended, short, done = history
    found = account(runs, 0.0, ended, short, step_s, done)
    assert found.total_s == pytest.approx(ended, abs=1e-6)
    assert min(found) >= -1e-9
    assert 0 <= found.goodput <= 1


def test_steps_next_to_a_snapshot_do_not_count_and_evaluations_are_shared_out() -> None:
    events: list[Event] = [
        attempt(0.0, 1, 0),
        *(step(float(i), i) for i in range(1, 11)),
        {"event": "snapshot", "time": 10.5, "step": 10, "stall_ms": 200.0, "seconds": 3.0, "copy_ms": 50.0},
        step(19.0, 11),
        step(20.0, 12),
        {"event": "evaluation", "time": 26.0, "step": 12},
    ]
    assert step_seconds(events) == {2: pytest.approx(1.0 + 6.0 / 12)}
    found = measured(events, gpus=2, begun_s=-8.0)
    assert found.step == {1: pytest.approx(1.5)}
    assert (found.stall, found.latency, found.copy, found.start) == (0.2, 3.0, 0.05, 8.0)
    assert found.restart == Costs().restart  # it was never interrupted


def test_restart_is_the_gap_less_the_time_without_nodes() -> None:
    found = measured(KILLED_ONCE, gpus=1, short=[(21.0, 26.0)])
    assert (found.detect, found.restart, found.join) == (0.0, 5.0, 5.0)


def test_run_without_events_costs_what_is_believed() -> None:
    known = Costs(step={4: 2.0}, restart=7.0)
    assert measured([], gpus=1, known=known) == known


def test_step_of_another_world_is_scaled_from_the_nearest() -> None:
    costs = Costs(step={2: 1.0, 8: 0.3})
    assert (costs.step_at(2), costs.step_at(4), costs.step_at(16)) == (1.0, 0.5, 0.15)
