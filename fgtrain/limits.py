"""What a run may cost at most, and what it has cost so far. Pure; `fgtrain.lease` and the supervisor both go by it.

runs/<run>/limits.json holds `Limits`, runs/<run>/spend.json `Spend`: they outlive the supervisor.
"""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run ends: money, hours of supervision, a deadline (Unix seconds), hours without a step.

    The deadline is no end: a run that misses it goes on, and says so.
    """

    max_cost: float | None = None
    max_hours: float | None = None
    deadline: float | None = None
    max_idle_hours: float | None = None


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has cost: seconds supervised, node-seconds held, money (None: prices are not known).

    `per_s` is what a second costs now. `since` is when the last step was taken, in seconds of `seconds`; it goes on
    with them while no node is held, so that what lies between the two is time in which nodes were held for nothing.
    `step_s` and `changeover_s` are the run's pace (0: not known): what a step takes while it trains, and new machines.
    """

    seconds: float = 0.0
    node_s: float = 0.0
    cost: float | None = None
    per_s: float = 0.0
    step: int = 0
    since: float = 0.0
    step_s: float = 0.0
    changeover_s: float = 0.0

    def later(self, seconds: float, nodes: int, per_node_s: float | None, step: int) -> Spend:
        """Return what it is after `nodes` nodes were held for some more seconds, and the run is at `step`.

        A step that was taken before is none: who goes on with a run begins at its last snapshot.
        """
        per_s = nodes * (per_node_s or 0.0)
        cost = None if per_node_s is None and self.cost is None else (self.cost or 0.0) + seconds * per_s
        return msgspec.structs.replace(
            self,
            seconds=self.seconds + seconds,
            node_s=self.node_s + nodes * seconds,
            cost=cost,
            per_s=per_s,
            step=max(self.step, step),
            since=self._since(seconds, nodes, step),
        )

    def _since(self, seconds: float, nodes: int, step: int) -> float:
        if step > self.step:
            return self.seconds + seconds
        return self.since if nodes else self.since + seconds


def exceeded(limits: Limits, spend: Spend) -> str | None:
    """Return which limit a run has reached, with the option that raises it; None: it may go on."""
    hours, idle_hours = spend.seconds / 3600, (spend.seconds - spend.since) / 3600
    if limits.max_hours is not None and hours >= limits.max_hours:
        return f"--max-hours {limits.max_hours:g} is reached after {hours:.2f} h"
    if limits.max_cost is not None and spend.cost is not None and spend.cost >= limits.max_cost:
        return f"--max-cost {limits.max_cost:g} is reached: {spend.cost:.2f} so far"
    if limits.max_idle_hours is not None and idle_hours >= limits.max_idle_hours:
        return f"--max-idle {limits.max_idle_hours:g}: no step for {idle_hours:.2f} h"
    return None
