"""Azure: Scheduled Events, from the instance metadata service.

A spot VM is told of its eviction (Preempt) at least 30 seconds before, of its end (Terminate) minutes, of a reboot or a
move to another host (Reboot, Redeploy) 10 to 15 minutes. A Freeze is a pause of seconds and loses nothing. Events are
told to all VMs of a group and name those that they are about. Once the node has left, the event may start
(`StartRequests`), if it is about this VM alone: for others, they would have to say so. The first request switches the
service on and may take two minutes.

Source: Azure documentation, "Scheduled Events for Linux VMs"
(learn.microsoft.com/azure/virtual-machines/linux/scheduled-events), "Azure Instance Metadata Service"
(learn.microsoft.com/azure/virtual-machines/instance-metadata-service), for the VM's name.
"""

from __future__ import annotations

import json
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source
from fgtrain.notices._metadata import ADDRESS, Metadata, expect

_PERIOD_S = 1.0
_FIRST_TIMEOUT_S = 150.0
_TIMEOUT_S = 10.0
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_HEADERS = {"Metadata": "true"}
_LOSSES = {"Preempt": "evicted", "Terminate": "deleted", "Reboot": "rebooted", "Redeploy": "moved to another host"}
_TAG = "7783-7084-3265-9085-8269-3286-77"
"""Source: cloud-init, DataSourceAzure: the chassis asset tag of every Azure VM."""


class Azure(Source):
    """Scheduled Events of an Azure VM."""

    name = "azure"

    def __init__(self, service: Metadata) -> None:
        self._service = service
        self._answered = False
        self._vm = ""
        self._alone: set[str] = set()  # events that are about this VM only
        self.watches = (self.watch,)

    def watch(self) -> list[Notice]:
        """Return what the VM is told now; the first call at once, later ones after a second."""
        if self._answered:
            self._service.pause(_PERIOD_S)
        timeout_s = _TIMEOUT_S if self._answered else _FIRST_TIMEOUT_S
        answer = expect(self._service.ask(_EVENTS, headers=_HEADERS, timeout_s=timeout_s), 200)
        self._answered = True
        events = _events(answer.body)
        if not events:
            return []
        vm = self._name()
        mine = [e for e in events if vm in e["Resources"]]
        self._alone |= {str(e["EventId"]) for e in mine if e["Resources"] == [vm]}
        return [n for e in mine if (n := scheduled(e, time.time()))]

    def _name(self) -> str:
        """Return this VM's name; its host name should the service not tell."""
        if not self._vm:
            answer = self._service.ask(_NAME, headers=_HEADERS)
            self._vm = answer.body.decode().strip() if answer.status == 200 else ""
        return self._vm or socket.gethostname()

    def left(self, notice: Notice) -> None:
        """See `Source.left`."""
        if notice.id in self._alone:
            body = json.dumps({"StartRequests": [{"EventId": notice.id}]}).encode()
            expect(self._service.ask(_EVENTS, method="POST", headers=_HEADERS, body=body), 200)


def scheduled(event: dict[str, Any], now: float) -> Notice | None:
    """Read one event; None for one that loses nothing. Pure.

    Raises:
        ValueError: NotBefore is no time.
    """
    kind, not_before = str(event["EventType"]), str(event.get("NotBefore") or "")
    if kind not in _LOSSES:
        return None
    return Notice(
        source="azure",
        what=f"VM will be {_LOSSES[kind]} ({kind})",
        id=str(event["EventId"]),
        loss=True,
        time=now,
        deadline=parsedate_to_datetime(not_before).timestamp() if not_before else now,  # empty: it has started
    )


def _events(body: bytes) -> list[dict[str, Any]]:
    said = json.loads(body)
    events = said.get("Events") if isinstance(said, dict) else None
    if not isinstance(events, list) or not all(isinstance(e, dict) and e.keys() >= _WHOLE for e in events):
        raise ValueError(f"not scheduled events: {body[:200]!r}")
    return events


_WHOLE = {"EventId", "EventType", "Resources"}


def find(machine: Machine) -> Azure | None:
    """See `fgtrain.notices`."""
    is_ours = machine.firmware.get("chassis_asset_tag") == _TAG
    url = machine.url("azure", ADDRESS)
    return Azure(Metadata(url)) if url and (is_ours or machine.chosen) else None
