"""Snapshots made of plain bytes: manifests and chunks as a saver leaves them, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fgtrain.manifest import FORMAT, Group, Manifest, TensorSpan, weights_digest
from fgtrain.runstore import RunStore
from fgtrain.snapshot.staged import Header, Stretch
from fgtrain.stores import Abilities, Entry, Store

CHUNK_BYTES = 4


def manifest_of(
    run: str, step: int, chunks: Mapping[str, int], *, attempt: int = 1, created: float = 0.0, parent: str | None = None
) -> Manifest:
    """Describe a snapshot whose one uint8 tensor is made of these chunks (digest -> bytes)."""
    size = sum(chunks.values())
    tensors = {"model/w": TensorSpan("uint8", (size,), "model", 0, size)}
    groups = {"model": Group(size, CHUNK_BYTES, tuple(chunks))}
    return Manifest(
        format=FORMAT,
        run=run,
        step=step,
        attempt=attempt,
        parent=parent,
        created=created,
        world=1,
        determinism="samples",
        weights=weights_digest(groups, tensors, ["model"]),
        bytes_new=size,
        bytes_shared=0,
        groups=groups,
        tensors=tensors,
        values={},
        logs={},
    )


def take_snapshot(runs: RunStore, step: int, contents: bytes, *, attempt: int = 1) -> Manifest:
    """Store these bytes as a snapshot; those of equal fours share a chunk."""
    pieces = [contents[i : i + CHUNK_BYTES] for i in range(0, len(contents), CHUNK_BYTES)]
    assert len(set(pieces)) == len(pieces)
    manifest = manifest_of(runs.run, step, {runs.put_chunk(p): len(p) for p in pieces}, attempt=attempt)
    runs.commit(manifest)
    return manifest


class WatchedStore:
    """`inner`, with a word before every request; what `before` raises happens instead of the request."""

    def __init__(self, inner: Store, before: Callable[[str, str], None]) -> None:
        self.inner, self.url, self.before = inner, inner.url, before

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.before("put", key)
        self.inner.put(key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        self.before("create", key)
        self.inner.create(key, data)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self.before("get", key)
        return self.inner.get(key, start, end)

    def head(self, key: str) -> Entry:
        self.before("head", key)
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self.before("list", prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.inner.delete(key)

    def check(self) -> Abilities:
        return self.inner.check()


def staged_share(
    folder: Path, run: str, step: int, contents: bytes, *, attempt: int, base: str | None = None
) -> Header:
    """Stage a whole state of one uint8 tensor, as the one rank of a world would."""
    size = len(contents)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slot0.bytes").write_bytes(contents)
    return Header(
        run=run,
        attempt=attempt,
        step=step,
        rank=0,
        world=1,
        base=base,
        determinism="samples",
        chunk_bytes=CHUNK_BYTES,
        group_bytes={"model": size},
        spans={"model/w": TensorSpan("uint8", (size,), "model", 0, size)},
        values={},
        stretches=(Stretch("model", 0, size, "slot0.bytes", 0),),
        lines={"metrics": [(step, f'{{"step": {step}}}')]},
        crc32={},
    )
