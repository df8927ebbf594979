"""Collecting garbage: deleting chunks that no manifest of any run refers to.

Chunks are shared between snapshots and runs, and savers take no locks. That nothing is lost follows from this.

What savers promise. A saver refers to a chunk only if (a) it has put it anew for this very snapshot, or (b) the last
manifest of its own lineage refers to it, or the parent that its run began with. From (a) to the commit passes less than
the grace period G. Pruning never deletes the newest manifest that verifies, and a run keeps its parent's weights by a
manifest of its own (`runs/<run>/parent`), so what (b) relies on stays referred to until the next commit.

What a collection does. It asks the *store* for the time t0 first (clocks here may be wrong), then reads all manifests,
and only then lists the chunks. Garbage is what no manifest refers to and what was last written before t0 - G.

1. A chunk that was put for a commit yet to come is not garbage: had it been put before t0 - G, its commit would have
   come before t0, and the manifests, read after t0, would have it. So the time must be taken before the manifests are
   read. The order of manifests and chunks would not matter then; chunks listed last show more of what was put anew.
2. A manifest may come or go while they are read. Coming: it refers to chunks of (a), see 1, and of (b), whose other
   manifest is read. Going: pruning and setting aside take turns with collections (`housekeeping`).
3. A saver may put a piece of garbage anew (the same bytes again, as after a resume from an older step) between the
   listing and the deletion. No store can delete "unless written since". So garbage is not deleted at once, but copied
   to `trash/`, then deleted: readers look there too (`RunStore.get_chunk`). A later collection looks at what has been
   in the trash for longer than G: whoever relied on it has committed since. What is referred to goes back, the rest
   goes. With G = 0 the caller vouches that nobody saves, and garbage is deleted at once.
4. A manifest that cannot be read, or is of a newer format, may refer to anything: nothing is collected.
5. Killed anywhere: a chunk is in `chunks/` or in the trash, whole, at any time; the next collection goes on.
6. Two collections at once could each throw away the copy that the other relies on: they take turns. A turn that is
   lost to a pause ends the collection before its next deletion.

G must exceed the time from a save's first upload to its commit, plus the time from a decision here to its deletion.
Source of the two steps: Duplicacy's lock-free deduplication ("fossil collection").
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from fgtrain import stores
from fgtrain.errors import KeyMissing
from fgtrain.housekeeping import Turn
from fgtrain.manifest import chunk_key, trash_key
from fgtrain.references import STREAMS, references
from fgtrain.stores import Entry, Store

GRACE_S = 6 * 3600.0


class Amount(msgspec.Struct, frozen=True):
    """So many objects of so many bytes in all."""

    objects: int = 0
    bytes_: int = 0


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection did, or would do.

    `referred`: chunks that manifests refer to. `young`: garbage written within the grace period, left alone.
    `set_aside`: garbage moved to the trash, deleted by a collection a grace period from now. `deleted`: gone.
    `restored`: found in the trash and referred to.
    """

    referred: Amount
    young: Amount
    set_aside: Amount
    deleted: Amount
    restored: Amount


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do with which objects of `chunks/` and `trash/`."""

    referred: Amount
    young: list[Entry]
    garbage: list[Entry]
    restored: list[Entry]
    emptied: list[Entry]


def collect(turn: Turn, grace_s: float = GRACE_S, streams: int = STREAMS) -> Collected:
    """Collect the garbage of the whole store. See the module's page for why this is safe.

    Args:
        turn: ours.
        grace_s: seconds that a chunk without a reference is left alone; 0: nobody else is writing.
        streams: requests at a time.

    Raises:
        Corrupt: a manifest cannot be read; nothing was done.
        StoreError: the store failed half-way; nothing is lost.
    """
    plan = _plan(turn.store, grace_s, frozenset(), streams)
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda e: _restore(turn, e), plan.restored))
        list(pool.map(lambda e: _delete(turn, e), plan.emptied))
        list(pool.map(lambda e: (_set_aside if grace_s else _delete)(turn, e), plan.garbage))
    return _told(plan, grace_s)


def foresee(store: Store, grace_s: float = GRACE_S, *, without: frozenset[str] = frozenset()) -> Collected:
    """Tell what `collect` would do; nothing is changed.

    Args:
        store: where.
        grace_s: see `collect`.
        without: keys of manifests that are taken for deleted.

    Raises:
        Corrupt, StoreError: see `collect`.
    """
    return _told(_plan(store, grace_s, without, STREAMS), grace_s)


def _plan(store: Store, grace_s: float, without: frozenset[str], streams: int) -> _Plan:
    """Mark, then list; see points 1 and 2 of the module's page for the order."""
    cutoff = stores.now(store) - grace_s
    referred: dict[str, int] = {}
    for reference in references(store, streams):
        if reference.key not in without:
            referred |= reference.manifest.chunks()
    trash = list(store.list("trash/"))
    loose = [e for e in store.list("chunks/") if _digest(e) not in referred]
    # With no grace even what was written in this second is garbage; a store's clock may tick in whole seconds.
    old = {e.key for e in [*loose, *trash] if not grace_s or e.modified < cutoff}
    return _Plan(
        referred=Amount(len(referred), sum(referred.values())),
        young=[e for e in loose if e.key not in old],
        garbage=[e for e in loose if e.key in old],
        restored=[e for e in trash if _digest(e) in referred],
        emptied=[e for e in trash if _digest(e) not in referred and e.key in old],
    )


def _told(plan: _Plan, grace_s: float) -> Collected:
    gone = plan.emptied if grace_s else [*plan.emptied, *plan.garbage]
    return Collected(
        referred=plan.referred,
        young=_amount(plan.young),
        set_aside=_amount(plan.garbage if grace_s else []),
        deleted=_amount(gone),
        restored=_amount(plan.restored),
    )


def _amount(entries: list[Entry]) -> Amount:
    return Amount(len(entries), sum(e.bytes_ for e in entries))


def _digest(entry: Entry) -> str:
    return entry.key.rsplit("/", 1)[1]


def _set_aside(turn: Turn, entry: Entry) -> None:
    turn.keep()
    stores.copy(turn.store, entry.key, trash_key(_digest(entry)))
    turn.keep()
    turn.store.delete(entry.key)


def _restore(turn: Turn, entry: Entry) -> None:
    """Put a chunk back, unless a saver has put it anew; only then is its copy dispensable."""
    turn.keep()
    home = chunk_key(_digest(entry))
    try:
        turn.store.head(home)
    except KeyMissing:
        stores.copy(turn.store, entry.key, home)
    turn.keep()
    turn.store.delete(entry.key)


def _delete(turn: Turn, entry: Entry) -> None:
    turn.keep()
    turn.store.delete(entry.key)
