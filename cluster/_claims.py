"""Taking a node's working folder for a run, as its backend sees it: see `Cluster.claim`, and `_host_claims`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster import Node, Occupied, Owner
from cluster import _host_claims as claims


def take(node: Node, owner: Owner, works: Callable[[Mapping[str, Any]], bool], **more: str) -> None:
    """Have a folder that this machine sees be a run's; `works` and the rest as `_host_claims.claim` has them.

    Raises:
        Occupied, OSError
    """
    record = {**owner._asdict(), **claims.signature(), **more}
    settle(node.name, claims.claim(node.folder, record, works))


def settle(place: str, other: Mapping[str, Any] | None) -> None:
    """Refuse a place that another run keeps, if one does.

    Raises:
        Occupied
    """
    if other is not None:
        raise Occupied(claims.refusal(place, other))
