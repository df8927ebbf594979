"""Manifests: what a snapshot consists of. The existence of a manifest in the store is the commit.

State is laid out as a few *groups* (frozen weights, trained weights, optimizer, moving average): each a run of bytes
cut into chunks of a fixed size, stored under the digest of their contents. The layout depends on the recipe alone,
never on the world size, so chunks are shared between snapshots, world sizes and runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
from blake3 import blake3

from fgtrain.errors import Corrupt
from fgtrain.sealed import seal, unseal

FORMAT = 2


class TensorSpan(msgspec.Struct, frozen=True):
    """Where a tensor's bytes (little-endian) lie in its group.

    `order` lists its dimensions from the slowest to the fastest in memory (channels-last: 0, 2, 3, 1); () is C order.
    """

    dtype: str
    shape: tuple[int, ...]
    group: str
    offset: int
    bytes_: int
    order: tuple[int, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """A run of `bytes_` bytes in chunks of `chunk_bytes` (the last one shorter), named by SHA-256."""

    bytes_: int
    chunk_bytes: int
    chunks: tuple[str, ...]


class Segment(msgspec.Struct, frozen=True):
    """JSON lines of the steps [start, stop), stored as a chunk."""

    start: int
    stop: int
    chunk: str
    bytes_: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One committed state of a run, after `step` optimizer steps.

    `values` holds what is not a tensor, as JSON. `logs` holds the metrics and sample-id lines of the whole committed
    lineage that led here. `weights` is the digest of parameters and buffers (and their moving average).
    """

    format: int
    run: str
    step: int
    attempt: int
    parent: str | None
    created: float
    world: int
    determinism: str
    weights: str
    bytes_new: int
    bytes_shared: int
    groups: dict[str, Group]
    tensors: dict[str, TensorSpan]
    values: dict[str, Any]
    logs: dict[str, tuple[Segment, ...]]

    @property
    def name(self) -> str:
        """The last part of the manifest's key: sorts by step, then attempt."""
        return manifest_name(self.step, self.attempt)

    def chunks(self) -> dict[str, int]:
        """Return every chunk this snapshot refers to, with its size in bytes."""
        found = {c: b for g in self.groups.values() for c, b in zip(g.chunks, chunk_sizes(g), strict=True)}
        return found | {s.chunk: s.bytes_ for segments in self.logs.values() for s in segments}


def manifest_name(step: int, attempt: int) -> str:
    """Return the name of a manifest; names sort by step, then attempt."""
    return f"{step:010d}-{attempt:05d}"


def chunk_digest(data: bytes | memoryview) -> str:
    """Return the name of contents: their BLAKE3 digest, in lower-case hex (docs/decisions/016)."""
    return blake3(data).hexdigest()


def chunk_key(digest: str) -> str:
    """Return the store key of a chunk."""
    return f"chunks/{digest[:2]}/{digest}"


def trash_key(digest: str) -> str:
    """Return the store key of a chunk that a collection has set aside (see `fgtrain.collect`)."""
    return f"trash/{digest[:2]}/{digest}"


def chunk_sizes(group: Group) -> list[int]:
    """Return the size in bytes of each chunk of a group."""
    return [min(group.chunk_bytes, group.bytes_ - i * group.chunk_bytes) for i in range(len(group.chunks))]


def chunk_count(bytes_: int, chunk_bytes: int) -> int:
    """Return how many chunks a group of `bytes_` needs."""
    return -(-bytes_ // chunk_bytes)


def cover(count: int, parts: Iterable[dict[int, str]]) -> tuple[str, ...]:
    """Join the ranks' part lists (chunk number -> digest) of one group.

    Raises:
        Corrupt: a chunk that no rank wrote, or that two ranks wrote differently or twice.
    """
    joined: dict[int, str] = {}
    for part in parts:
        twice = joined.keys() & part.keys()
        if twice:
            raise Corrupt(f"chunk {min(twice)} was written by two ranks")
        joined |= part
    if sorted(joined) != list(range(count)):
        raise Corrupt(f"{count} chunks planned, {len(joined)} written")
    return tuple(joined[i] for i in range(count))


def weights_digest(groups: dict[str, Group], tensors: dict[str, TensorSpan], names: Iterable[str]) -> str:
    """Return the digest of the weights in the groups `names`: chunk digests, and where each tensor lies in them."""
    chosen = set(names)
    table = [(n, t) for n, t in sorted(tensors.items()) if t.group in chosen]
    body = msgspec.json.encode([table, {g: groups[g] for g in sorted(chosen & groups.keys())}])
    return hashlib.sha256(body).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Encode with a checksum of its own in the first line."""
    return seal(msgspec.json.encode(manifest, order="deterministic"))


def decode(data: bytes) -> Manifest:
    """Decode what `encode` wrote.

    Raises:
        Corrupt: truncated, altered, or of a format this version does not know.
    """
    body = unseal(data, "the manifest")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.ValidationError as error:
        raise Corrupt(f"a manifest of another format: {error}") from error
    if manifest.format != FORMAT:
        raise Corrupt(f"a manifest of format {manifest.format}; this version knows {FORMAT}")
    return manifest
