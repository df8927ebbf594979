"""How supervision of a run ends."""

from __future__ import annotations

import msgspec

from fgtrain.errors import StoreError
from fgtrain.runstore import Result, RunFile, RunStore

EXIT_LIMIT = 1
EXIT_FENCED = 3
EXIT_INTERRUPTED = 130


class Outcome(msgspec.Struct, frozen=True):
    """How supervision ended, the exit code, and one line (and a traceback) on why.

    States: finished, stopped, failed; fenced: another supervisor goes on with the run, maybe `elsewhere`, on another
    cluster.
    """

    state: str
    exit_code: int
    message: str = ""
    traceback: str = ""
    elsewhere: bool = False

    @property
    def needs_no_nodes(self) -> bool:
        """Whether nobody will go on soon, here: the run is over or has reached a limit. Who has stopped it may."""
        limited = self.state == "stopped" and self.exit_code == EXIT_LIMIT
        return limited or self.elsewhere or self.state in ("finished", "failed")


def of_work(run: RunFile, runs: RunStore) -> Outcome:
    """Return what it comes to that all workers have left without complaint: only what is committed is believed."""
    try:
        result = runs.read("result.json", Result)
    except StoreError as error:
        return Outcome("failed", 1, f"the workers left, and the run has no result: {error}")
    if result.step != run.plan.steps:
        return Outcome("failed", 1, f"the run ended at step {result.step} of {run.plan.steps}")
    return Outcome("finished", 0)


def is_done(runs: RunStore) -> bool:
    """Tell whether the workers have finished the run; False too where the store does not answer just now."""
    try:
        return runs.exists("result.json")
    except StoreError:
        return False
