"""Whether a run that keeps failing is worth another try. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fgtrain.runstore import Attempt, Failure

PATIENCE = 5  # attempts in a row that begin at the same step


class Verdict(NamedTuple):
    """Why a run is given up."""

    exit_code: int
    message: str
    traceback: str


def judge(attempts: Sequence[Attempt], failed: Sequence[Failure]) -> Verdict | None:
    """Return why to give up, or None to go on.

    A user's mistake stops at once. The same exception from the same step in two attempts is no accident. And attempts
    that begin at one and the same step PATIENCE times in a row make no progress, whatever the reason.
    """
    failed = sorted(failed, key=lambda f: f.time)
    for failure in failed:
        if failure.kind == "user":
            return Verdict(2, failure.message, "")
    if repeated := _repeated(attempts, [f for f in failed if f.kind == "error"]):
        return Verdict(1, f"failed twice at the same place: {repeated.message}", repeated.traceback)
    steps = [a.step for a in sorted(attempts, key=lambda a: a.attempt)[-PATIENCE:]]
    if len(steps) == PATIENCE and len(set(steps)) == 1:
        cause = next((f for f in reversed(failed)), None)
        message = f"{PATIENCE} attempts began at step {steps[0]} and none got further"
        return Verdict(1, message, cause.traceback if cause else "")
    return None


def _repeated(attempts: Sequence[Attempt], errors: Sequence[Failure]) -> Failure | None:
    begins = {a.attempt: a.step for a in attempts}
    seen: dict[tuple[str, int, int | None], set[float]] = {}
    for error in errors:
        # Before its attempt has begun (attempt 0), the rank and the message are all there is to go by.
        rank = error.rank if error.attempt == 0 else -1
        tries = seen.setdefault((error.message, rank, begins.get(error.attempt)), set())
        tries.add(error.attempt or error.time)
        if len(tries) > 1:
            return error
    return None
