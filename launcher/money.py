"""What nodes cost, and for how long they go on alone: settings that any cluster's entry in clusters.toml may have.

    [lab]
    kind = "ssh"
    price_per_node_hour = 3.06   # or { spot = 0.92, on_demand = 3.06 }
    lease_s = 900                # nodes end their work so long after the supervisor fell silent

Amounts have no currency: what you write is what you read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from cluster import Offer
from fgtrain.errors import UserError
from fgtrain.lease import DEFAULT_S

SETTINGS = ("price_per_node_hour", "lease_s")
_KINDS = ("spot", "on_demand")


class Prices(NamedTuple):
    """What an hour of a node costs; the same twice where there is but one kind."""

    spot: float
    on_demand: float


@runtime_checkable
class Priced(Protocol):
    """A cluster backend that knows its prices itself."""

    def prices(self) -> Prices | None:
        """Return what an hour of a node costs, None if it is not known."""


class Terms(NamedTuple):
    """A cluster's prices, and the lease of its nodes in seconds (None: they go when the supervisor does)."""

    prices: Prices | None
    lease_s: float | None


UNKNOWN = Terms(None, None)


def read_terms(entry: Mapping[str, Any], where: str) -> Terms:
    """Read the terms in a cluster's entry.

    Raises:
        UserError: a value is no amount; `where` names file and entry.
    """
    lease_s = entry.get("lease_s")
    if lease_s is not None and _amount(lease_s, f"{where}: lease_s") < 30:
        raise UserError(f"{where}: lease_s is {lease_s:g}; a supervisor needs 30 seconds or more to show that it lives")
    return Terms(_prices(entry.get("price_per_node_hour"), f"{where}: price_per_node_hour"), lease_s)


def _prices(found: Any, where: str) -> Prices | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        amount = _amount(found, where)
        return Prices(amount, amount)
    if not found or set(found) - set(_KINDS):
        raise UserError(f"{where}: an amount, or {{ spot = ..., on_demand = ... }}")
    amounts = {kind: _amount(value, f"{where}.{kind}") for kind, value in found.items()}
    other = next(iter(amounts.values()))
    return Prices(amounts.get("spot", other), amounts.get("on_demand", other))


def _amount(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{where} is {value!r}, and must be a number, 0 or more")
    return float(value)


def prices_of(terms: Terms, cluster: object) -> Prices | None:
    """Return a cluster's prices: the user's word, else what its backend knows."""
    if terms.prices is None and isinstance(cluster, Priced):
        return cluster.prices()
    return terms.prices


def rate_of(terms: Terms, offer: Offer) -> float | None:
    """Return what an hour of a rented node costs: the user's word, else what it was taken for (None: no price)."""
    if terms.prices:
        return terms.prices.spot if offer.spot else terms.prices.on_demand
    return offer.dollars_per_hour / offer.nodes or None


def lease_of(terms: Terms, *, lasting: bool) -> float | None:
    """Return how many seconds nodes go on without a supervisor; None where they end with it anyway."""
    return (terms.lease_s or DEFAULT_S) if lasting else None


def spell_cost(cost: float | None, steps: int) -> str:
    """Write an amount, and what a thousand steps came to."""
    if cost is None:
        return ""
    return f"{cost:.2f}" + (f" ({1000 * cost / steps:.3g}/1k steps)" if steps else "")
