"""Google Cloud: preemption and host maintenance, from the metadata server.

`instance/preempted` turns TRUE when the shutdown of a spot VM begins: 30 seconds are left. `instance/maintenance-event`
turns TERMINATE_ON_HOST_MAINTENANCE an hour before a machine with GPUs is stopped for maintenance. Both are waited for:
the server answers when the value's ETag is no longer the one named, or after `timeout_sec`.

Source: Compute Engine documentation, "Create and use Spot VMs"
(cloud.google.com/compute/docs/instances/create-use-spot), "Query metadata server for maintenance event notices"
(.../docs/metadata/getting-live-migration-notice), "View and query VM metadata", on waiting for changes
(.../docs/metadata/querying-metadata).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlencode

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source
from fgtrain.notices._metadata import ADDRESS, Metadata, expect

_WAIT_S = 60
_SLACK_S = 10.0  # for the answer to come, once the wait is over
_GRACE_S = 30.0
_MAINTENANCE_S = 3600.0
_HEADERS = {"Metadata-Flavor": "Google"}

Read = Callable[[str, str, float], Notice | None]


class Value:
    """One value of the metadata server, waited for."""

    def __init__(self, service: Metadata, path: str, read: Read) -> None:
        self._service, self._path, self._read = service, path, read
        self._etag = ""

    def wait(self) -> list[Notice]:
        """Return what the value means, once it is another than last time; the first call returns at once."""
        asked = {"alt": "text"}
        if self._etag:
            asked |= {"wait_for_change": "true", "timeout_sec": str(_WAIT_S), "last_etag": self._etag}
        path = f"/computeMetadata/v1/instance/{self._path}?{urlencode(asked)}"
        timeout_s = _WAIT_S + _SLACK_S if self._etag else _SLACK_S
        answer = expect(self._service.ask(path, headers=_HEADERS, timeout_s=timeout_s), 200)
        if answer.headers.get("metadata-flavor") != "Google" or "etag" not in answer.headers:
            raise ValueError("not the metadata server: it answers without Metadata-Flavor or ETag")
        self._etag = answer.headers["etag"]
        notice = self._read(answer.body.decode().strip(), self._etag, time.time())
        return [notice] if notice else []


class Gcp(Source):
    """Notices of a Compute Engine VM."""

    name = "gcp"

    def __init__(self, service: Metadata) -> None:
        self.watches = (
            Value(service, "preempted", preemption).wait,
            Value(service, "maintenance-event", maintenance).wait,
        )


def preemption(value: str, etag: str, now: float) -> Notice | None:
    """Read `instance/preempted`: TRUE or FALSE. Pure."""
    if value != "TRUE":
        return None
    return Notice(source="gcp", what="preempted", id=f"preempted {etag}", loss=True, time=now, deadline=now + _GRACE_S)


def maintenance(value: str, etag: str, now: float) -> Notice | None:
    """Read `instance/maintenance-event`: NONE, MIGRATE_ON_HOST_MAINTENANCE or TERMINATE_ON_HOST_MAINTENANCE. Pure."""
    if value == "TERMINATE_ON_HOST_MAINTENANCE":
        what, deadline = "stopped for maintenance", now + _MAINTENANCE_S
        return Notice(source="gcp", what=what, id=f"maintenance {etag}", loss=True, time=now, deadline=deadline)
    if value == "MIGRATE_ON_HOST_MAINTENANCE":
        return Notice(source="gcp", what="moved to another host", id=f"migration {etag}", loss=False, time=now)
    return None


def find(machine: Machine) -> Gcp | None:
    """See `fgtrain.notices`. Source: Compute Engine documentation, "Detect if a VM is running in Compute Engine"."""
    is_ours = machine.firmware.get("product_name") == "Google Compute Engine"
    url = machine.url("gcp", ADDRESS)
    return Gcp(Metadata(url)) if url and (is_ours or machine.chosen) else None
