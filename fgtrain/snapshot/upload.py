"""Uploading staged shares and committing them: the work of the uploader process, without the process. Light.

Each rank's uploader stores the chunks of its share and then a part list. Rank 0's gathers the part lists, checks that
every planned byte is covered once, and creates the manifest: that is the commit. Nothing is ever changed in place, so a
writer that dies or fails at any point leaves the store as good as before.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from fgtrain import manifest as manifests
from fgtrain.errors import Corrupt, FglaunchError, KeyMissing, StoreError, StoreUnavailable
from fgtrain.manifest import Group, Manifest, Segment, chunk_key
from fgtrain.runstore import RunStore
from fgtrain.sealed import seal, unseal
from fgtrain.snapshot.staged import Header, Lines

WEIGHT_GROUPS = ("frozen", "model", "ema")
PART_TIMEOUT_S = 300.0  # from a share being stored to the slowest rank's
_STREAMS = 4  # requests at a time
_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25  # between two looks for part lists: what a commit may come late by
_PAUSE_SHARE = 0.1  # of what has been waited
_STORED, _GIVEN_UP = ".json", ".failed"  # how the key of a rank's part list ends
_PENDING_S = 3600.0  # how long an uncommitted upload may be relied upon: well below any grace period of a collection


class Fenced(FglaunchError):
    """A newer attempt of this run has begun; this one may no longer commit."""


class PartList(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank stored for one snapshot: (number, digest) of chunks by group, bytes by fate, its log lines."""

    chunks: dict[str, list[tuple[int, str]]]
    bytes_new: int
    bytes_shared: int
    lines: Lines


class Uploader:
    """Stores the shares that one rank stages during one attempt."""

    def __init__(
        self,
        runs: RunStore,
        folder: Path,
        attempt: int,
        rank: int,
        last: Manifest | None,
        trusted: frozenset[str] = frozenset(),
        doubtful: frozenset[str] = frozenset(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Work on what is staged in `folder`.

        Args:
            runs: the run's corner of the store.
            folder: where the rank's staged shares are.
            attempt: this attempt.
            rank: this rank.
            last: the manifest that this attempt's history goes on from.
            trusted: chunks that some manifest keeps alive and that were read and verified by this attempt.
            doubtful: chunks that some manifest keeps alive, unread: looked for in the store before use.
            sleep: how to wait between two looks at the store.
        """
        self._runs = runs
        self.folder = folder
        self._attempt = attempt
        self._rank = rank
        self._last = last
        self._safe = set(trusted)
        self._doubtful = set(doubtful) - self._safe
        self._pending: dict[str, float] = {}  # digest -> when this process stored it
        self._frozen: dict[int, str] = {}
        self._sleep = sleep

    # -- one rank's share -----------------------------------------------------------------------------------------

    def store_share(self, header: Header, *, rehash: bool = True) -> PartList:
        """Store the chunks of a staged share that the store does not have, then the part list.

        Args:
            header: the share.
            rehash: hash what does not change (the frozen group) too, rather than go by its last digest.

        Raises:
            StoreError
        """
        self._learn_commits()
        if rehash:
            self._frozen.clear()
        elif not self._frozen:
            self._frozen = _same_frozen(header, self._last)
        digests: dict[str, list[tuple[int, str]]] = {}
        new = shared = 0
        with ThreadPoolExecutor(_STREAMS) as pool:
            for group, number, bytes_, digest, is_new in pool.map(self._store_chunk, self._chunks(header)):
                digests.setdefault(group, []).append((number, digest))
                new, shared = (new + bytes_, shared) if is_new else (new, shared + bytes_)
        part = PartList(chunks=digests, bytes_new=new, bytes_shared=shared, lines=header.lines)
        self._runs.store.put(f"{self._parts(header.step)}/{self._rank:05d}{_STORED}", seal(msgspec.json.encode(part)))
        return part

    def give_up(self, step: int, reason: str) -> bool:
        """Tell the committing rank not to wait for this one; no more than an attempt, False if it failed."""
        with suppress(StoreError):
            self._runs.store.put(f"{self._parts(step)}/{self._rank:05d}{_GIVEN_UP}", reason.encode())
            return True
        return False

    def _parts(self, step: int) -> str:
        return self._runs.key(f"parts/{manifests.manifest_name(step, self._attempt)}")

    def _chunks(self, header: Header) -> Iterator[tuple[Header, str, int, memoryview]]:
        """Yield (header, group, number, bytes) of every chunk of a share, straight from mapped memory."""
        maps: dict[str, memoryview] = {}
        for s in header.stretches:
            if s.file not in maps:
                with (self.folder / s.file).open("rb") as file:
                    maps[s.file] = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            for start in range(s.start, s.stop, header.chunk_bytes):
                stop = min(start + header.chunk_bytes, s.stop)
                at = s.offset + start - s.start
                yield header, s.group, start // header.chunk_bytes, maps[s.file][at : at + stop - start]

    def _store_chunk(self, what: tuple[Header, str, int, memoryview]) -> tuple[str, int, int, str, bool]:
        header, group, number, data = what
        digest = self._frozen.get(number) if group == "frozen" else None
        if digest is None:
            digest = manifests.chunk_digest(data)
            if group == "frozen":
                self._frozen[number] = digest
        known = self._known(digest, len(data))
        if not known:
            self._runs.store.put(chunk_key(digest), data)
            self._pending[digest] = time.monotonic()
        return group, number, len(data), digest, not known

    def _known(self, digest: str, bytes_: int) -> bool:
        """Tell whether the store holds a chunk and will go on holding it."""
        if digest in self._safe or time.monotonic() - self._pending.get(digest, -math.inf) < _PENDING_S:
            return True
        if digest not in self._doubtful:
            return False
        self._doubtful.discard(digest)
        try:
            there = self._runs.store.head(chunk_key(digest)).bytes_ == bytes_
        except KeyMissing:
            return False
        if there:
            self._safe.add(digest)
        return there

    def _learn_commits(self) -> None:
        """Take over the newest commit of this attempt that can be read."""
        for name in reversed([n for n in self._runs.manifest_names() if n.endswith(f"-{self._attempt:05d}")]):
            if self._last is not None and self._last.name == name:
                return
            with suppress(Corrupt, KeyMissing):
                self._go_on_from(self._runs.manifest(name))
                return

    def _go_on_from(self, manifest: Manifest) -> None:
        """What the newest commit refers to need not be stored again; what only older ones did may be collected."""
        self._last = manifest
        self._safe = set(manifest.chunks())

    @property
    def last(self) -> Manifest | None:
        """The newest commit that this uploader knows of."""
        return self._last

    # -- rank 0: the commit ---------------------------------------------------------------------------------------

    def commit(self, header: Header, newer: Callable[[], bool] = lambda: False) -> Manifest:
        """Wait for all part lists and create the manifest.

        Args:
            header: rank 0's own, which describes the whole state.
            newer: tells that waiting is pointless, because all of a newer snapshot is staged.

        Raises:
            Fenced: another attempt took over.
            StoreError: a rank's part list did not come, or the store failed.
        """
        parts = self._gather(header, newer)
        self._learn_commits()  # a rank that has heard of a commit has dropped the log lines which that commit holds
        groups = {}
        for name, bytes_ in header.group_bytes.items():
            count = manifests.chunk_count(bytes_, header.chunk_bytes)
            groups[name] = Group(
                bytes_, header.chunk_bytes, manifests.cover(count, [dict(p.chunks.get(name, ())) for p in parts])
            )
        manifest = Manifest(
            format=manifests.FORMAT,
            run=self._runs.run,
            step=header.step,
            attempt=self._attempt,
            parent=self._last.name if self._last else None,
            created=time.time(),
            world=header.world,
            determinism=header.determinism,
            weights=manifests.weights_digest(groups, header.spans, WEIGHT_GROUPS),
            bytes_new=sum(p.bytes_new for p in parts),
            bytes_shared=sum(p.bytes_shared for p in parts),
            groups=groups,
            tensors=header.spans,
            values=header.values,
            logs=self._logs(header.step, [p.lines for p in parts]),
        )
        self._check_fence()
        self._create(manifest)
        self._go_on_from(manifest)
        return manifest

    def _check_fence(self) -> None:
        if max(self._runs.attempts(), default=0) > self._attempt:
            raise Fenced(f"attempt {self._attempt} of {self._runs.run} was replaced by a newer one")

    def _create(self, manifest: Manifest) -> None:
        """Create the manifest; if the answer is lost, see whether it is there."""
        try:
            self._runs.commit(manifest)
        except StoreUnavailable:
            with suppress(Corrupt, StoreError):
                if self._runs.manifest(manifest.name) == manifest:
                    return
            raise

    def _gather(self, header: Header, newer: Callable[[], bool]) -> list[PartList]:
        name, begun = self._parts(header.step), time.monotonic()
        while True:
            keys = [e.key for e in self._runs.store.list(self._runs.key("parts/"))]
            there = [k for k in keys if k.startswith(f"{name}/")]
            if given_up := [k for k in there if k.endswith(_GIVEN_UP)]:
                reason = self._runs.store.get(given_up[0]).decode(errors="replace")
                raise StoreUnavailable(f"rank {_rank_of(given_up[0])}: {reason}")
            if len(there) == header.world:
                return [self._part(key) for key in there]
            gone_on = _gone_on(keys, name, header.world)
            waited = time.monotonic() - begun
            if gone_on or waited > PART_TIMEOUT_S or newer():
                why = f"; rank {gone_on[0]} has gone on without" if gone_on else ""
                raise StoreUnavailable(f"{len(there)} of {header.world} ranks stored their share{why}")
            self._check_fence()  # a newer attempt's commit takes the part lists of older ones away
            self._sleep(min(max(_PAUSE_S, waited * _PAUSE_SHARE), _LONGEST_PAUSE_S))

    def _part(self, key: str) -> PartList:
        try:
            return msgspec.json.decode(unseal(self._runs.store.get(key), key), type=PartList)
        except msgspec.DecodeError as error:
            raise Corrupt(f"{key} is of another format: {error}") from error

    def _logs(self, step: int, parts: list[Lines]) -> dict[str, tuple[Segment, ...]]:
        """Store the lines that came since the last commit and return the logs of the whole lineage."""
        logs = dict(self._last.logs) if self._last else {}
        start = self._last.step if self._last else 0
        for log in sorted({name for p in parts for name in p}):
            lines = sorted(line for p in parts for line in p.get(log, ()) if start < line[0] <= step)
            data = "".join(text + "\n" for _, text in lines).encode()
            if data:
                segment = Segment(start, step, self._runs.put_chunk(data), len(data))
                logs[log] = (*logs.get(log, ()), segment)
        return logs

    def clean(self, step: int) -> None:
        """Remove part lists that no commit needs once that of `step` is made; leftovers harm nobody.

        Those of a newer attempt stay, whatever their step: its commit may be under way.
        """
        with suppress(StoreError):
            for entry in list(self._runs.store.list(self._runs.key("parts/"))):
                its_step, its_attempt = map(int, entry.key.split("/")[-2].split("-"))
                if its_attempt < self._attempt or (its_attempt == self._attempt and its_step <= step):
                    self._runs.store.delete(entry.key)


def _rank_of(key: str) -> int:
    return int(key.rsplit("/", 1)[1].split(".")[0])


def _gone_on(keys: list[str], name: str, world: int) -> list[int]:
    """Return the ranks that miss from the part lists `name` and stored one of a later step: they will not come.

    Args:
        keys: of all part lists of the run.
        name: `.../parts/<step>-<attempt>`.
        world: how many ranks there should be.
    """
    attempt = name.rsplit("-", 1)[1]
    stored, later = set[int](), set[int]()
    for key in keys:
        folder = key.rsplit("/", 1)[0]
        if folder == name:
            stored.add(_rank_of(key))
        elif folder > name and folder.rsplit("-", 1)[1] == attempt:
            later.add(_rank_of(key))
    return sorted(later & set(range(world)) - stored)


def _same_frozen(header: Header, last: Manifest | None) -> dict[int, str]:
    """Return the digests of the frozen group's chunks, by number, if it lies as it did in `last`."""
    group = last.groups.get("frozen") if last else None
    if last is None or group is None:
        return {}
    if (group.bytes_, group.chunk_bytes) != (header.group_bytes.get("frozen"), header.chunk_bytes):
        return {}
    return dict(enumerate(group.chunks))
