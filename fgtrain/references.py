"""What refers to chunks: the committed manifests of all runs, those set aside, and the weights that runs began with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from fgtrain import manifest as manifests
from fgtrain.errors import Corrupt, KeyMissing, StoreUnavailable
from fgtrain.manifest import Manifest
from fgtrain.stores import Store

STREAMS = 8  # requests at a time


class Reference(NamedTuple):
    """A manifest and the key it lies under."""

    key: str
    manifest: Manifest


def refers(key: str) -> bool:
    """Tell whether the object under a key is a manifest, of whatever kind."""
    words = key.split("/")
    return words[0] == "runs" and (
        (len(words) == 4 and words[2] in ("manifests", "abandoned")) or (len(words) == 3 and words[2] == "parent")
    )


def references(store: Store, streams: int = STREAMS) -> Iterator[Reference]:
    """Yield every manifest of the store, read with so many requests at a time.

    Raises:
        Corrupt: one cannot be read, so that nobody knows what it refers to.
        StoreUnavailable: the store failed, or a manifest vanished meanwhile; worth another try.
    """
    keys = [e.key for e in store.list("runs/") if refers(e.key)]
    with ThreadPoolExecutor(streams) as pool:
        yield from pool.map(lambda key: _read(store, key), keys)


def _read(store: Store, key: str) -> Reference:
    try:
        return Reference(key, manifests.decode(store.get(key)))
    except Corrupt as error:
        raise Corrupt(f"{key} cannot be read ({error})") from error
    except KeyMissing as error:
        raise StoreUnavailable(f"{key} vanished from {store.url} while it was being read; try again") from error
