"""When to give up: the user's mistake at once, the same error twice, no progress five times; never before."""

from __future__ import annotations

import pytest

from fgtrain.runstore import Attempt, Failure
from launcher.failures import PATIENCE, judge


def attempts(*steps: int) -> list[Attempt]:
    return [Attempt(attempt=i, step=s, world=2, started=float(i)) for i, s in enumerate(steps, 1)]


def failure(attempt: int, kind: str = "error", message: str = "boom", rank: int = 0, time: float = 0.0) -> Failure:
    return Failure(attempt=attempt, rank=rank, time=time, kind=kind, message=message, traceback=f"tb of {message}")


def test_nothing_failed_goes_on() -> None:
    assert judge([], []) is None
    assert judge(attempts(0), []) is None


def test_users_mistake_ends_at_once_with_2_and_no_traceback() -> None:
    verdict = judge(attempts(0), [failure(1, "error"), failure(1, "user", "no such folder", time=1.0)])
    assert verdict == (2, "no such folder", "")


def test_first_of_several_mistakes_is_told() -> None:
    verdict = judge([], [failure(0, "user", "late", time=2.0), failure(0, "user", "early", time=1.0)])
    assert verdict is not None
    assert verdict.message == "early"


def test_one_error_is_worth_another_try_whatever_the_ranks() -> None:
    assert judge(attempts(0), [failure(1, rank=0), failure(1, rank=1)]) is None


def test_same_error_from_the_same_step_twice_ends_with_its_traceback() -> None:
    verdict = judge(attempts(8, 8), [failure(1), failure(2)])
    assert verdict is not None
    assert verdict.exit_code == 1
    assert "boom" in verdict.message
    assert verdict.traceback == "tb of boom"


@pytest.mark.parametrize(
    ("steps", "messages"), [((0, 8), ("boom", "boom")), ((8, 8), ("boom", "bang"))], ids=["moved on", "another error"]
)
def test_other_error_or_other_step_is_worth_another_try(steps: tuple[int, ...], messages: tuple[str, ...]) -> None:
    assert judge(attempts(*steps), [failure(i, message=m) for i, m in enumerate(messages, 1)]) is None


def test_lost_peers_never_count_as_the_same_error() -> None:
    assert judge(attempts(8, 8, 8), [failure(i, "peer") for i in (1, 2, 3)]) is None


def test_error_before_the_attempt_began_counts_by_rank_and_message() -> None:
    assert judge([], [failure(0, rank=0, time=1.0), failure(0, rank=1, time=1.1)]) is None
    assert judge([], [failure(0, rank=1, time=1.0), failure(0, rank=1, time=2.0)]) is not None


def test_no_progress_ends_after_patience_and_tells_the_last_cause() -> None:
    assert judge(attempts(*[8] * (PATIENCE - 1)), []) is None
    verdict = judge(attempts(*[8] * PATIENCE), [failure(1, "peer", "lost", time=1.0)])
    assert verdict == (1, f"{PATIENCE} attempts began at step 8 and none got further", "tb of lost")


def test_progress_refills_patience() -> None:
    assert judge(attempts(*[0] * (PATIENCE - 1), 8, *[16] * (PATIENCE - 1)), []) is None


def test_order_of_reading_does_not_matter() -> None:
    began, failed = attempts(0, 8, 8), [failure(2), failure(3, time=3.0)]
    assert judge(began[::-1], failed[::-1]) == judge(began, failed)
