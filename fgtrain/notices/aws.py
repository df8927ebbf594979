"""AWS: spot interruption and rebalance recommendation, from instance metadata (IMDSv2).

An interruption is told two minutes before the instance is stopped or terminated; AWS asks to look every 5 seconds.
Until then the items are not there: 404.

Source: Amazon EC2 User Guide, "Spot Instance interruption notices"
(docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html), "EC2 instance rebalance
recommendations" (.../rebalance-recommendations.html), "How Instance Metadata Service Version 2 works"
(.../instance-metadata-v2-how-it-works.html).
"""

from __future__ import annotations

import json
import time
from datetime import datetime

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source
from fgtrain.notices._metadata import ADDRESS, Answer, Metadata, expect

_PERIOD_S = 5.0
_TOKEN_S = 21600  # the longest there is: six hours
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


class Aws(Source):
    """Spot notices of an EC2 instance."""

    name = "aws"

    def __init__(self, service: Metadata) -> None:
        self._service = service
        self._token = ""
        self._asked = False
        self.watches = (self.watch,)

    def watch(self) -> list[Notice]:
        """Return what the instance is told now; the first call at once, later ones after some seconds."""
        if self._asked:
            self._service.pause(_PERIOD_S)
        self._asked = True
        now = time.time()
        action, rebalance = self._get(_ACTION), self._get(_REBALANCE)
        return [
            *([interruption(action.body, now)] if action.status == 200 else []),
            *([recommendation(rebalance.body, now)] if rebalance.status == 200 else []),
        ]

    def _get(self, path: str) -> Answer:
        """Ask with a token, and with a new one where it has expired (401)."""
        for _ in range(2):
            if not self._token:
                self._token = self._new_token()
            answer = self._service.ask(path, headers={"X-aws-ec2-metadata-token": self._token})
            if answer.status != 401:
                return expect(answer, 200, 404)
            self._token = ""
        return expect(answer, 200, 404)

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
        return expect(self._service.ask("/latest/api/token", method="PUT", headers=headers), 200).body.decode("ascii")


def interruption(body: bytes, now: float) -> Notice:
    """Read `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`. Pure.

    Raises:
        ValueError: it is not that.
    """
    said = _object(body)
    action, when = str(said["action"]), str(said["time"])
    return Notice(
        source="aws",
        what=f"spot instance will {action}",
        id=f"{action} {when}",
        loss=True,
        time=now,
        deadline=datetime.fromisoformat(when).timestamp(),
    )


def recommendation(body: bytes, now: float) -> Notice:
    """Read `{"noticeTime": "2020-10-27T08:22:00Z"}`. Pure.

    Raises:
        ValueError: it is not that.
    """
    when = str(_object(body)["noticeTime"])
    return Notice(source="aws", what="rebalance recommended", id=f"rebalance {when}", loss=False, time=now)


def _object(body: bytes) -> dict[str, object]:
    said = json.loads(body)
    if not isinstance(said, dict) or not {"action", "time"} <= said.keys() and "noticeTime" not in said:
        raise ValueError(f"not a notice: {body[:200]!r}")
    return said


def find(machine: Machine) -> Aws | None:
    """See `fgtrain.notices`. Source: Amazon EC2 User Guide, "Detect whether a host is an EC2 instance"."""
    firmware = machine.firmware
    is_ours = firmware.get("sys_vendor") == "Amazon EC2" or "amazon" in firmware.get("bios_version", "").lower()
    url = machine.url("aws", ADDRESS)
    return Aws(Metadata(url)) if url and (is_ours or machine.chosen) else None
