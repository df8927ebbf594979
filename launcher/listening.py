"""What nodes and workers say: passed on to whoever watches, and to whoever decides."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fgtrain.runstore import Failure
from launcher.clock import Clock
from launcher.events import Event
from launcher.failures import sign_of
from launcher.feed import Feed
from launcher.fleet import Fleet
from launcher.guard import Guard
from launcher.incidents import Incidents


class Listener:
    """Listens to the nodes of one run.

    Attributes:
        step: the last step that was heard of.
    """

    def __init__(
        self,
        fleet: Fleet,
        feed: Feed,
        incidents: Incidents,
        guard: Guard,
        clock: Clock,
        show: Callable[[Event], None],
    ) -> None:
        self._fleet, self._feed, self._incidents, self._guard = fleet, feed, incidents, guard
        self._clock, self._show = clock, show
        self.step = 0

    def pass_on_events(self) -> None:
        """Take in what the nodes have noted since last asked, and show it."""
        for event in self._feed.events(self._fleet.nodes):
            self._take(event)
            self._show(event)

    def _take(self, event: Event) -> None:
        match event["event"]:
            case "failure":
                self.hear(msgspec.convert(event["failure"], Failure))
            case "attempt":
                self._incidents.attempt(event["attempt"], event["step"])
                for seat in self._fleet.seats:
                    seat.failures = 0
            case "snapshot":
                self._incidents.committed(event["step"])
            case "step":
                self.step = max(self.step, event["step"])

    def hear(self, failure: Failure) -> None:
        """A worker has said why it gave up."""
        sign = sign_of(failure)._replace(node=self._fleet.name_at(failure.folder))
        self._incidents.add(self._clock.now(), sign)

    def read_logs(self, now: float) -> None:
        """Take in the lines that the agents have added to their logs."""
        nodes = self._fleet.nodes
        for node, lines in zip(nodes, self._feed.agent_lines(nodes), strict=True):
            for line in lines:
                self._incidents.log_line(now, node.name, self._clock.time(), line)
                self._guard.hear(node, line)
