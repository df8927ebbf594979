"""Budgets: each class its own, spent by failures, refilled by progress only; delays grow, are capped and keyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import UserError
from launcher.budgets import Ledger, delay_s
from launcher.failures import KINDS, Kind
from launcher.supervision import Budget, Supervision, changed

RETRIED: list[Kind] = [k for k in KINDS if k != "user"]
budgets = st.builds(
    Budget,
    tries=st.integers(0, 50),
    free=st.integers(0, 5),
    base_s=st.floats(0, 100),
    factor=st.floats(1, 5),
    cap_s=st.floats(0, 1000),
)
draws = st.floats(0, 1, exclude_max=True)


@given(budgets, st.integers(1, 10**6), draws)
def test_delay_is_never_negative_nor_above_the_cap(budget: Budget, number: int, draw: float) -> None:
    assert 0 <= delay_s(budget, number, draw) <= budget.cap_s


@given(budgets, st.integers(1, 1000), draws)
def test_delay_never_shrinks_with_the_number_of_tries(budget: Budget, number: int, draw: float) -> None:
    assert delay_s(budget, number, draw) <= delay_s(budget, number + 1, draw)


@given(budgets, st.integers(1, 1000), draws)
def test_jitter_takes_off_at_most_a_half(budget: Budget, number: int, draw: float) -> None:
    full = delay_s(budget, number, 0.0)
    assert full / 2 <= delay_s(budget, number, draw) <= full


@given(budgets, draws)
def test_first_tries_are_free(budget: Budget, draw: float) -> None:
    assert all(delay_s(budget, n, draw) == 0 for n in range(1, budget.free + 1))


@given(st.sampled_from(RETRIED), st.data())
def test_budget_allows_as_many_tries_as_it_says(kind: Kind, data: st.DataObject) -> None:
    settings = Supervision()
    tries = getattr(settings, kind).tries
    ledger = Ledger(settings, "run")
    for number in range(1, min(tries, 100) + 1):
        for other in data.draw(st.lists(st.sampled_from([k for k in RETRIED if k != kind]), max_size=2)):
            ledger.spend(other)
        assert ledger.spend(kind)[0::2] == (True, number)
    if tries <= 100:
        assert not ledger.spend(kind).allowed


def test_users_errors_are_never_tried_again() -> None:
    assert not Ledger(Supervision(), "run").spend("user").allowed


@given(st.lists(st.one_of(st.sampled_from(RETRIED), st.integers(0, 20)), max_size=60))
def test_only_a_new_best_step_refills(events: list[Kind | int]) -> None:
    ledger, best, spent = Ledger(Supervision(), "run"), 0, dict.fromkeys(RETRIED, 0)
    for event in events:
        if isinstance(event, int):
            assert ledger.progress(event) == (event > best)
            if event > best:
                best, spent = event, dict.fromkeys(RETRIED, 0)
        else:
            spent[event] += 1
            assert ledger.spend(event).number == spent[event]


def test_jitter_is_the_same_for_the_same_run_and_differs_between_runs() -> None:
    def third(run: str) -> float:
        ledger = Ledger(Supervision(), run)
        return [ledger.spend("hang").delay_s for _ in range(3)][2]

    assert third("a") == third("a") != third("b")


def test_settings_are_set_by_path() -> None:
    settings = changed(Supervision(), ["lost.tries=20", "watchdog.floor_s=5", "check.level=off"])
    assert (settings.lost.tries, settings.watchdog.floor_s, settings.check.level) == (20, 5.0, "off")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("lost.trys=20", "--supervise lost.trys: Budget has no field 'trys'; did you mean 'lost.tries'?"),
        ("lost.tries=many", "--supervise lost.tries=many"),
        ("check.level=some", "one of"),
        ("lost", "--supervise lost: write path=value"),
    ],
)
def test_wrong_setting_is_one_clear_line(assignment: str, words: str) -> None:
    with pytest.raises(UserError, match=".*") as caught:
        changed(Supervision(), [assignment])
    assert words in str(caught.value)
