"""The settings of supervision: how often each class of failure is tried again, when a rank counts as hanging, ...

Changed by `--supervise PATH=VALUE`, for example `--supervise lost.tries=20`, and kept in the run's store, so that
whoever goes on with the run supervises it alike. docs/supervision.md says what each class is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fgtrain import overrides
from fgtrain.errors import KeyMissing, RecipeError, UserError
from fgtrain.parts import Part
from fgtrain.runstore import RunStore

KEY = "supervision.json"


class Budget(Part):
    """How often a class of failure is tried again without progress between, and after which delays.

    The first `free` tries follow at once. Then the delay is `base_s`, times `factor` for each further try, at most
    `cap_s`, less a keyed jitter of up to a half.
    """

    tries: int
    free: int = 1
    base_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 60.0


class Hang(Part):
    """When a run counts as hanging: no rank has moved for `factor` times the usual step, and at least `floor_s`.

    The first `first_steps` steps of an attempt are not learned from (compilation, autotuning, cold caches). Whatever is
    no step (start, restore, first steps, evaluation, the end) has `quiet_s`; 0: for ever.
    """

    factor: float = 15.0
    floor_s: float = 60.0
    first_steps: int = 3
    quiet_s: float = 1800.0


class Straggler(Part):
    """A rank is reported whose work before the exchange takes `factor` times the others' median for long.

    That is for `for_s` seconds and for `for_steps` steps.
    """

    factor: float = 1.5
    for_s: float = 30.0
    for_steps: int = 20


class Check(Part):
    """The check of nodes before they are used.

    `level`: "cheap" looks at disk, memory, clock and device files; "full" also computes on each device and measures the
    links; "auto" is full where nodes are other machines; "off" looks at nothing.
    """

    level: Literal["auto", "cheap", "full", "off"] = "auto"
    timeout_s: float = 90.0
    disk_gib: float = 0.5
    skew_s: float = 60.0
    link_mb_s: float = 1.0


class Supervision(Part):
    """All settings, one budget for each class of failure."""

    preemption: Budget = Budget(tries=1000, free=1000)
    lost: Budget = Budget(tries=10, free=3)
    hang: Budget = Budget(tries=4, cap_s=300.0)
    oom: Budget = Budget(tries=2)
    fitted: Budget = Budget(tries=1000, free=1000)
    hardware: Budget = Budget(tries=4)
    capacity: Budget = Budget(tries=60, free=0, base_s=5.0, cap_s=300.0)
    error: Budget = Budget(tries=4, free=2)
    watchdog: Hang = Hang()
    straggler: Straggler = Straggler()
    check: Check = Check()
    node_tries: int = 3
    """How often starting on a node may fail in a row before another node takes its place."""
    silent_s: float = 120.0
    """How long a node may be silent before its agent is started anew, or another node takes its place; 0: for ever."""


def changed(settings: Supervision, assignments: Sequence[str]) -> Supervision:
    """Return the settings with `--supervise` assignments applied.

    Raises:
        UserError: no such setting, or a value that it cannot have.
    """
    try:
        for assignment in assignments:
            settings = overrides.apply(settings, assignment)
    except RecipeError as error:
        raise UserError(str(error).replace("--set", "--supervise")) from None
    return settings


def recorded(runs: RunStore) -> Supervision:
    """Return a run's settings, the defaults if none were recorded.

    Raises:
        Corrupt: they cannot be read.
    """
    try:
        return runs.read(KEY, Supervision)
    except KeyMissing:
        return Supervision()
