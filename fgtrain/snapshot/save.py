"""Taking a snapshot: every rank stores its share of the chunks, rank 0 commits the manifest."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

import torch.distributed as dist

from fgtrain import manifest as manifests
from fgtrain.errors import FglaunchError, StoreError, StoreUnavailable
from fgtrain.manifest import Group, Manifest, Segment, chunk_key
from fgtrain.place import Place, from_leader
from fgtrain.runstore import Attempt, RunStore
from fgtrain.snapshot.layout import Layout, Tensors, read_group, split

WEIGHT_GROUPS = ("frozen", "model", "ema")


class Fenced(FglaunchError):
    """A newer attempt of this run has begun; this one may no longer commit."""


class Part(NamedTuple):
    """What one rank stored: chunk digests by (group, number), new and shared bytes, and its log lines by log."""

    chunks: dict[tuple[str, int], str]
    bytes_new: int
    bytes_shared: int
    lines: dict[str, list[tuple[int, str]]]


class Saver:
    """Writes the snapshots of one attempt."""

    def __init__(self, runs: RunStore, place: Place, attempt: Attempt, determinism: str, last: Manifest | None) -> None:
        self._runs = runs
        self._place = place
        self._attempt = attempt
        self._determinism = determinism
        self._last = last
        self._known = set(last.chunks()) if last else set[str]()

    def save(
        self, step: int, tensors: Tensors, values: dict[str, Any], lines: dict[str, list[tuple[int, str]]]
    ) -> Manifest:
        """Store and commit the state after `step` steps; called by all ranks together.

        Args:
            step: optimizer steps done.
            tensors: the live state by group; not changed until this returns.
            values: what is not a tensor.
            lines: this rank's new log lines since the last commit, as (step, JSON line), by log.

        Raises:
            Fenced: another attempt took over.
            StoreError: the store failed; nothing is committed and the lines stay the caller's.
        """
        layout = Layout(tensors)
        part: Part | None = None
        answer: Manifest | FglaunchError | None = None
        try:
            part = self._store_share(layout, tensors, lines)
        except StoreError as error:
            answer = error
        parts = self._gather(part)
        if self._place.leads:
            try:
                answer = self._commit(step, layout, parts, values)
            except FglaunchError as error:
                answer = answer or error
        answer = from_leader(answer, self._place)
        if not isinstance(answer, Manifest):
            assert answer is not None
            raise answer
        manifest = answer
        self._last, self._known = manifest, set(manifest.chunks())
        return manifest

    def _store_share(self, layout: Layout, tensors: Tensors, lines: dict[str, list[tuple[int, str]]]) -> Part:
        chunks = layout.chunks()
        digests: dict[tuple[str, int], str] = {}
        new = shared = 0
        for i in split([c[2] for c in chunks], self._place.rank, self._place.size):
            group, number, bytes_ = chunks[i]
            start = number * layout.chunk_bytes
            data = read_group(layout.spans, tensors[group], start, start + bytes_)
            digest = hashlib.sha256(data).hexdigest()
            digests[group, number] = digest
            if digest in self._known:
                shared += bytes_
            else:
                self._runs.store.put(chunk_key(digest), memoryview(data))
                new += bytes_
        return Part(digests, new, shared, lines)

    def _gather(self, part: Part | None) -> list[Part | None]:
        if self._place.size == 1:
            return [part]
        parts: list[Part | None] = [None] * self._place.size
        dist.gather_object(part, parts if self._place.leads else None, dst=0)
        return parts

    def _commit(self, step: int, layout: Layout, gathered: list[Part | None], values: dict[str, Any]) -> Manifest:
        parts = [p for p in gathered if p is not None]
        if len(parts) != self._place.size:
            raise StoreUnavailable(f"snapshot of step {step}: a rank could not store its share")
        groups = {}
        for name, bytes_ in layout.group_bytes.items():
            count = manifests.chunk_count(bytes_, layout.chunk_bytes)
            own = [{n: d for (g, n), d in p.chunks.items() if g == name} for p in parts]
            groups[name] = Group(bytes_, layout.chunk_bytes, manifests.cover(count, own))
        weights = manifests.weights_digest(groups, layout.spans, WEIGHT_GROUPS)
        manifest = Manifest(
            format=manifests.FORMAT,
            run=self._runs.run,
            step=step,
            attempt=self._attempt.attempt,
            parent=self._last.name if self._last else None,
            created=time.time(),
            world=self._place.size,
            determinism=self._determinism,
            weights=weights,
            bytes_new=sum(p.bytes_new for p in parts),
            bytes_shared=sum(p.bytes_shared for p in parts),
            groups=groups,
            tensors=layout.spans,
            values=values,
            logs=self._logs(step, [p.lines for p in parts]),
        )
        if max(self._runs.attempts()) > self._attempt.attempt:
            raise Fenced(f"attempt {self._attempt.attempt} of {self._runs.run} was replaced by a newer one")
        self._runs.commit(manifest)
        return manifest

    def _logs(self, step: int, parts: list[dict[str, list[tuple[int, str]]]]) -> dict[str, tuple[Segment, ...]]:
        """Store the new lines of all ranks and return the logs of the whole lineage."""
        logs = dict(self._last.logs) if self._last else {}
        start = self._last.step if self._last else 0
        for log in sorted({name for p in parts for name in p}):
            lines = sorted(line for p in parts for line in p.get(log, ()))
            data = "".join(text + "\n" for _, text in lines).encode()
            if data:
                segment = Segment(start, step, self._runs.put_chunk(data), len(data))
                logs[log] = (*logs.get(log, ()), segment)
        return logs
