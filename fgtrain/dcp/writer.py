"""`StoreWriter`: what `torch.distributed.checkpoint.save` and `async_save` write to a store of this project."""

from __future__ import annotations

import os
import threading
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from fgtrain.dcp.blocks import Block, Chunk, Part, blocks_of, chunks_of
from fgtrain.dcp.parallel import in_parallel
from fgtrain.dcp.payload import Payload, fingerprint, payload
from fgtrain.dcp.record import (
    FORMAT,
    Item,
    NamedCheckpoints,
    Record,
    check_items,
    checked_name,
    checked_prefix,
    checkpoints,
    chunk_key,
    decode,
    encode,
    entries_of,
    planner_document,
    record_key,
)
from fgtrain.errors import Corrupt, KeyExists, KeyMissing, StoreError, StoreUnavailable, UserError
from fgtrain.stores import Store, open_store


class Share(NamedTuple):
    """What one rank says of one item to the coordinator; no stored item: it was another rank's to write."""

    name: str
    fingerprint: str
    stored: Item | None


class _Saving(threading.local):
    """The save that a thread is in: `async_save` may run several on one writer, each in a thread of its own."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.save_id = ""
        self.leads = False
        self.local = SavePlan([])
        self.known: frozenset[str] = frozenset()


class StoreWriter(NamedCheckpoints, StorageWriter):
    """Writes checkpoints below a prefix of a store.

    The checkpoint exists from the moment its record is created, which comes last, and only if every planned byte was
    stored. Chunks that the newest checkpoint of the prefix has too are not uploaded again.
    """

    def __init__(
        self,
        store: Store | str,
        prefix: str,
        name: str | None = None,
        *,
        from_rank_zero: Sequence[str] = (),
        trust_pickle: bool = False,
        threads: int = 4,
    ) -> None:
        """Prepare to write; nothing is sent yet.

        Args:
            store: a store, or the URL of one.
            prefix: the folder of keys that this job's checkpoints share.
            name: of the checkpoint; `checkpoint_id` of `dcp.save` takes its place.
            from_rank_zero: patterns (as `*.running_mean`) of keys whose value may differ between ranks, and of which
                rank 0's is kept. Any other key that differs is an error: all but one value would be lost.
            trust_pickle: store values that are not plain as the planner serialises them (`torch.save`).
            threads: concurrent uploads, each of a chunk (8 MiB at most).

        Raises:
            UserError: the store cannot be opened, or the prefix or name cannot be a key.
        """
        self.store = open_store(store) if isinstance(store, str) else store
        self.prefix = checked_prefix(prefix)
        self.from_rank_zero = tuple(from_rank_zero)
        self.trust_pickle = trust_pickle
        self.threads = threads
        self._first_name = checked_name(name) if name is not None else None
        self._saving = _Saving(self._first_name)
        self._checked = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process (`AsyncCheckpointerType.PROCESS`) as the store's URL."""
        rebuild = partial(
            StoreWriter, from_rank_zero=self.from_rank_zero, trust_pickle=self.trust_pickle, threads=self.threads
        )
        return rebuild, (self.store.url, self.prefix, self._saving.name)

    @property
    def checkpoint_id(self) -> str | None:
        """The name of the checkpoint being written, if it was given one."""
        return self._saving.name

    # -- the calls of dcp.save, in their order ---------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another checkpoint.

        Raises:
            UserError: not a name.
        """
        if checkpoint_id is not None:
            self._saving.name = checked_name(os.fspath(checkpoint_id))

    def storage_meta(self) -> StorageMeta:
        """See `StorageWriter.storage_meta`."""
        return StorageMeta(checkpoint_id=self._name())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Find out, before anything is written, whether this checkpoint can be committed.

        Raises:
            KeyExists: there is a checkpoint of this name; it stays as it is.
            UserError: the store cannot be used, or the ranks are not to agree on one checkpoint.
        """
        if not kwargs.get("use_collectives", True):
            raise UserError("use_collectives=False: each rank would commit a part as if it were a checkpoint")
        saving = self._saving
        saving.save_id, saving.leads = uuid.uuid4().hex, is_coordinator
        if is_coordinator:
            self._check_store()
            self._check_free(self._name())
        saving.known = self._newest_chunks()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave what is rank 0's to rank 0."""
        self._saving.local = plan if self._saving.leads else self._without_rank_zeros(plan)
        return self._saving.local

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """See `StorageWriter.prepare_global_plan`: nothing to add."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store this rank's items.

        Raises:
            UserError: something that cannot be stored, or changed while it was; names it.
            StoreError: the store failed. As any error here, it keeps the checkpoint from being committed.
        """
        payloads: list[Payload] = []
        blocks: dict[int, list[tuple[Part, Block]]] = defaultdict(list)
        chunks = chunks_of(self._bytes_of(plan, planner, payloads))
        for found in in_parallel(partial(self._store_chunk, known=self._saving.known), chunks, self.threads):
            for part, block in found:
                blocks[part.item].append((part, block))
        self._check_unchanged(plan, planner, payloads)
        results = [self._written(*x, blocks[n]) for n, x in enumerate(zip(plan.items, payloads, strict=True))]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results + self._seen(plan, planner))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit, if every planned byte is stored, once, and every rank meant the same.

        Raises:
            UserError: ranks held different values under one key.
            Corrupt: something that was planned was not written.
            KeyExists: another writer was first.
            StoreError: the store failed; it is not committed.
        """
        shares = [[(r.index, r.storage_data) for r in ranks] for ranks in results]
        self._check_shares(shares)
        entries = entries_of(metadata)
        items = tuple(share.stored for ranks in shares for _, share in ranks if share.stored is not None)
        check_items(entries, items)
        record = Record(
            format=FORMAT,
            name=self._name(),
            save_id=self._saving.save_id,
            created=time.time(),
            version=metadata.version,
            entries=entries,
            planner_data=planner_document(metadata.planner_data),
            items=items,
        )
        self._commit(record_key(self.prefix, record.name), encode(record))

    # -- before ----------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        if self._saving.name is None:
            raise UserError(f"checkpoint of {self.prefix}: name it: dcp.save(..., checkpoint_id='step-1000')")
        return self._saving.name

    def _check_store(self) -> None:
        if self._checked:
            return
        if not self.store.check().conditional_create:
            warnings.warn(
                f"store {self.store.url} ignores conditional writes: never let two jobs write to {self.prefix}",
                stacklevel=2,
            )
        self._checked = True

    def _check_free(self, name: str) -> None:
        try:
            self.store.head(record_key(self.prefix, name))
        except KeyMissing:
            return
        raise KeyExists(f"checkpoint {name} of {self.prefix} is there already; give this one another name")

    def _newest_chunks(self) -> frozenset[str]:
        """Return the chunks of the newest checkpoint: they need not be uploaded again."""
        names = checkpoints(self.store, self.prefix)
        if not names:
            return frozenset()
        try:
            record = decode(self.store.get(record_key(self.prefix, names[-1])))
        except (Corrupt, KeyMissing):
            return frozenset()  # nothing to share; who reads that checkpoint will hear of it
        return frozenset(block.chunk for item in record.items for block in item.blocks)

    def _without_rank_zeros(self, plan: SavePlan) -> SavePlan:
        def mine(item: WriteItem) -> bool:
            shard = item.type is WriteItemType.SHARD
            return shard or not any(fnmatchcase(item.index.fqn, p) for p in self.from_rank_zero)

        return replace(plan, items=[item for item in plan.items if mine(item)])

    # -- storing ---------------------------------------------------------------------------------------------------

    def _bytes_of(self, plan: SavePlan, planner: SavePlanner, payloads: list[Payload]) -> Iterator[memoryview]:
        """Yield the items' bytes, one item at a time, and note the rest of each payload."""
        for item in plan.items:
            found = payload(item, planner, self.trust_pickle)
            payloads.append(found.noted())
            yield found.data

    def _store_chunk(self, chunk: Chunk, known: frozenset[str]) -> list[tuple[Part, Block]]:
        digest, found = blocks_of(chunk)
        key = chunk_key(self.prefix, digest)
        if digest not in known or not self._is_whole(key, len(chunk.data)):
            self.store.put(key, chunk.data)
        return found

    def _is_whole(self, key: str, bytes_: int) -> bool:
        """Tell whether a chunk that a committed checkpoint refers to is still there, and not truncated."""
        try:
            return self.store.head(key).bytes_ == bytes_
        except KeyMissing:
            return False

    def _check_unchanged(self, plan: SavePlan, planner: SavePlanner, payloads: list[Payload]) -> None:
        """Check that what was read first is still as it was when the last was read: else two steps may be mixed.

        Raises:
            UserError
        """
        for item, found in zip(plan.items, payloads, strict=True):
            if fingerprint(item, planner, self.trust_pickle) != found.fingerprint:
                raise UserError(
                    f"{item.index.fqn} changed while it was being saved; wait for one save before the next,"
                    " or let no two that are in flight share a stager"
                )

    def _written(self, item: WriteItem, found: Payload, blocks: list[tuple[Part, Block]]) -> WriteResult:
        stored = Item(
            fqn=item.index.fqn,
            offset=None if item.index.offset is None else tuple(item.index.offset),
            encoding=found.encoding,
            bytes_=found.bytes_,
            blocks=tuple(block for _, block in sorted(blocks, key=lambda b: b[0].number)),
        )
        return WriteResult(item.index, found.bytes_, Share(self._name(), found.fingerprint, stored))

    def _seen(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Return the fingerprints of what this rank holds and the plan left to another rank."""
        local = self._saving.local
        if not local.usable and isinstance(planner, DefaultSavePlanner):  # it kept the plan it made the last time
            local = create_default_local_save_plan(planner.state_dict, self._saving.leads)
            local = local if self._saving.leads else self._without_rank_zeros(local)
        mine = {item.index for item in plan.items}
        return [
            WriteResult(i.index, 0, Share(self._name(), fingerprint(i, planner, self.trust_pickle), None))
            for i in local.items
            if i.index not in mine
        ]

    # -- committing ------------------------------------------------------------------------------------------------

    def _check_shares(self, shares: list[list[tuple[MetadataIndex, Share]]]) -> None:
        """Check that all ranks wrote this checkpoint, and the same under each key.

        Raises:
            UserError
        """
        held: dict[str, dict[str, int]] = defaultdict(dict)
        for rank, ranks in enumerate(shares):
            for index, share in ranks:
                if share.name != self._name():
                    raise UserError(f"rank {rank} is saving {share.name}, and rank 0 {self._name()}")
                held[f"{index.fqn} {index.offset}"].setdefault(share.fingerprint, rank)
        differ = {key.rsplit(" ", 1)[0]: sorted(ranks.values()) for key, ranks in held.items() if len(ranks) > 1}
        if differ:
            listed = ", ".join(f"{key} (ranks {r[0]} and {r[1]})" for key, r in sorted(differ.items())[:5])
            raise UserError(
                f"{len(differ)} keys differ between ranks, and one value of each would be kept: {listed}. Give each"
                " rank a key of its own, or name those of which rank 0's is meant: StoreWriter(from_rank_zero=[...])"
            )

    def _commit(self, key: str, data: bytes) -> None:
        try:
            self.store.create(key, data)
        except (KeyExists, StoreUnavailable):
            # A response may be lost after the work was done, and a client that then tries again is told it exists.
            if not self._reads(key, data):
                raise

    def _reads(self, key: str, data: bytes) -> bool:
        try:
            return self.store.get(key) == data
        except StoreError:
            return False
