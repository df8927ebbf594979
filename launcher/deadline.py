"""Spot or on-demand, so that a deadline is met: the Uniform Progress policy. Pure.

Source: Wu, Chiang, Mao, Yang, Friedman, Shenker, Stoica, "Can't Be Late: Optimizing Spot Instance Savings under
Deadlines", NSDI 2024. Its rules, with R the time left, C the work left, d the changeover delay: when the work is done,
hold nothing (thrifty); when R < C + 2d and not on spot, take on-demand and keep it (safety net); take spot whenever it
is there and keep it until it is taken away, behind or not (exploitation); idle and behind the uniform pace, take
on-demand, and keep it until the pace of 2d later is reached (hysteresis). As decisions here are taken only now and
then, the safety net allows for the time between two of them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Capacity(Enum):
    """What a job holds."""

    NONE = "none"
    SPOT = "spot"
    ON_DEMAND = "on-demand"


class Job(NamedTuple):
    """A job that must be done in time; all in seconds.

    `work_s` is what it takes undisturbed, `deadline_s` how long it has from its beginning, `changeover_s` what passes
    from choosing other nodes to training on them, lost work included.
    """

    work_s: float
    deadline_s: float
    changeover_s: float


class Moment(NamedTuple):
    """How things stand: seconds since the job began, work done in seconds, what it holds, whether spot can be had.

    What was taken away is no longer held.
    """

    elapsed_s: float
    done_s: float
    holds: Capacity
    spot: bool


def uniform_progress(job: Job, now: Moment, tick_s: float) -> Capacity:
    """Return what to hold until the next decision, `tick_s` seconds from now."""
    left_s, work_s = job.deadline_s - now.elapsed_s, job.work_s - now.done_s
    if work_s <= 0:
        return Capacity.NONE
    if now.holds is Capacity.SPOT:
        return Capacity.SPOT
    if left_s < work_s + 2 * job.changeover_s + tick_s:
        return Capacity.ON_DEMAND
    lead_s = 2 * job.changeover_s if now.holds is Capacity.ON_DEMAND else 0.0
    behind = now.done_s < _expected_s(job, now.elapsed_s + lead_s)
    if behind and now.holds is Capacity.ON_DEMAND:
        return Capacity.ON_DEMAND
    if now.spot:
        return Capacity.SPOT
    return Capacity.ON_DEMAND if behind else Capacity.NONE


def _expected_s(job: Job, elapsed_s: float) -> float:
    """Return the work that would be done by now at a uniform pace."""
    return min(job.work_s, elapsed_s * job.work_s / job.deadline_s)


class Outcome(NamedTuple):
    """How a job went: when it was done (None: not by the end), and seconds of each kind that were paid."""

    done_s: float | None
    spot_s: float
    on_demand_s: float

    def cost(self, spot: float, on_demand: float) -> float:
        """Return what it cost at these prices an hour."""
        return (self.spot_s * spot + self.on_demand_s * on_demand) / 3600


def play(job: Job, spot: Sequence[bool], tick_s: float, *, only: Capacity | None = None) -> Outcome:
    """Play a job on spot availability.

    Args:
        job: what is to be done.
        spot: whether spot can be had in each tick; afterwards it cannot.
        tick_s: the length of a tick; decisions are taken at the beginning of each.
        only: hold this kind throughout (spot: whenever it is there) in place of the policy.
    """
    done_s, until_trains_s = 0.0, 0.0
    holds = Capacity.NONE
    paid = {Capacity.SPOT: 0.0, Capacity.ON_DEMAND: 0.0, Capacity.NONE: 0.0}
    tick = 0
    while tick < len(spot) or only is not Capacity.SPOT:
        here = tick < len(spot) and spot[tick]
        if holds is Capacity.SPOT and not here:
            holds = Capacity.NONE
        wanted = (
            _only(only, here) if only else uniform_progress(job, Moment(tick * tick_s, done_s, holds, here), tick_s)
        )
        if wanted is not holds:
            until_trains_s = job.changeover_s
        holds = wanted
        trains_s = max(0.0, tick_s - until_trains_s) if holds is not Capacity.NONE else 0.0
        until_trains_s = max(0.0, until_trains_s - tick_s)
        if trains_s and done_s + trains_s >= job.work_s:
            used_s = tick_s - trains_s + job.work_s - done_s
            paid[holds] += used_s
            return Outcome(tick * tick_s + used_s, paid[Capacity.SPOT], paid[Capacity.ON_DEMAND])
        done_s += trains_s
        paid[holds] += tick_s
        tick += 1
    return Outcome(None, paid[Capacity.SPOT], paid[Capacity.ON_DEMAND])


def _only(only: Capacity, spot: bool) -> Capacity:
    return Capacity.NONE if only is Capacity.SPOT and not spot else only
