"""`StoreReader`: what `torch.distributed.checkpoint.load` reads from a store of this project."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from fgtrain.dcp.fetch import Wanted, fetch, fetches
from fgtrain.dcp.parallel import in_parallel
from fgtrain.dcp.record import (
    Item,
    Key,
    NamedCheckpoints,
    checked_name,
    checked_prefix,
    checkpoints,
    decode,
    metadata_of,
    record_key,
)
from fgtrain.dcp.values import decode_value
from fgtrain.errors import UserError
from fgtrain.stores import Store, open_store


class StoreReader(NamedCheckpoints, StorageReader):
    """Reads a checkpoint that `StoreWriter` wrote, on any number of ranks.

    Each rank reads only the blocks that its part of the state needs, and verifies each against its SHA-256.
    """

    def __init__(
        self,
        store: Store | str,
        prefix: str,
        name: str | None = None,
        *,
        trust_pickle: bool = False,
        threads: int = 8,
    ) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            store: a store, or the URL of one.
            prefix: see `StoreWriter`.
            name: of the checkpoint; `checkpoint_id` of `dcp.load` takes its place. None: the newest one.
            trust_pickle: load values that were stored as their planner serialised them. This runs whatever code
                their bytes hold.
            threads: concurrent reads.

        Raises:
            UserError: the store cannot be opened, or the prefix or name cannot be a key.
        """
        self.store = open_store(store) if isinstance(store, str) else store
        self.prefix = checked_prefix(prefix)
        self.name = checked_name(name) if name is not None else None
        self.trust_pickle = trust_pickle
        self.threads = threads
        self._save_id = ""
        self._items: dict[Key, Item] = {}
        self._shards: dict[Key, tuple[tuple[int, ...], torch.dtype]] = {}

    # -- the calls of dcp.load, in their order ---------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another load.

        Raises:
            UserError: not a name.
        """
        if checkpoint_id is not None:
            self.name = checked_name(os.fspath(checkpoint_id))

    def read_metadata(self) -> Metadata:
        """Read the record of the checkpoint.

        Raises:
            UserError: the prefix has no checkpoint.
            KeyMissing: none of this name.
            Corrupt: it is not as it was written.
            StoreUnavailable: worth another try.
        """
        name = self.name or self._newest()
        record = decode(self.store.get(record_key(self.prefix, name)))
        self._save_id = record.save_id
        metadata = metadata_of(record)
        metadata.storage_meta = StorageMeta(checkpoint_id=name, save_id=record.save_id)
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take the checkpoint's metadata, as `read_metadata` returned it."""
        self._items = {item.key: item for item in metadata.storage_data.values()}
        self._shards = {
            (fqn, tuple(chunk.offsets)): (tuple(chunk.sizes), md.properties.dtype)
            for fqn, md in metadata.state_dict_metadata.items()
            if isinstance(md, TensorStorageMetadata)
            for chunk in md.chunks
        }

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tell the coordinator which checkpoint this rank found."""
        return replace(plan, storage_data=self._save_id)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks found the same checkpoint.

        Raises:
            UserError: another one was committed while they looked for the newest.
        """
        if len({plan.storage_data for plan in plans}) > 1:
            raise UserError(f"the ranks found different checkpoints of {self.prefix}; load one by its name")
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for into the planner's tensors and values.

        Raises:
            Corrupt: bytes that are not those that were written; names the item.
            UserError: a value that only pickle could restore.
            StoreUnavailable: worth another try.
        """
        wanted = self._wanted(plan)
        for item in wanted:
            if not item.missing:
                item.allocate()
                self._deliver(item, planner)
        read = partial(fetch, store=self.store, prefix=self.prefix)
        for targets in in_parallel(read, fetches(wanted), self.threads):
            for _, item, number in targets:
                item.missing.discard(number)
                if not item.missing:
                    self._deliver(item, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    # -- reading ---------------------------------------------------------------------------------------------------

    def _newest(self) -> str:
        names = checkpoints(self.store, self.prefix)
        if not names:
            raise UserError(f"store {self.store.url} has no checkpoint below {self.prefix}")
        return names[-1]

    def _wanted(self, plan: LoadPlan) -> list[Wanted]:
        found: dict[Key, Wanted] = {}
        for read in plan.items:
            offset = read.storage_index.offset
            key = read.storage_index.fqn, None if offset is None else tuple(offset)
            if key not in found:
                item = self._items[key]
                found[key] = Wanted(item, *self._shards.get(key, ((item.bytes_,), torch.uint8)))
            found[key].ask(read)
        for wanted in found.values():
            self._check_trust(wanted.item)
        return list(found.values())

    def _check_trust(self, item: Item) -> None:
        if item.encoding == "opaque" and not self.trust_pickle:
            raise UserError(
                f"{item.fqn}: stored as pickle; StoreReader(trust_pickle=True) loads it and runs whatever code it holds"
            )

    def _deliver(self, wanted: Wanted, planner: LoadPlanner) -> None:
        """Hand an item, all of whose blocks are here, to the planner."""
        for read in wanted.reads:
            if wanted.item.encoding == "tensor":
                _copy(wanted.shard(), read, planner)
            else:
                planner.load_bytes(read, _as_planner_bytes(wanted))
        wanted.drop()


def _copy(shard: torch.Tensor, read: ReadItem, planner: LoadPlanner) -> None:
    box = tuple(slice(o, o + n) for o, n in zip(read.storage_offsets, read.lengths, strict=True))
    source, target = shard[box], planner.resolve_tensor(read).detach()
    if source.shape != target.shape:
        raise UserError(f"{read.dest_index.fqn}: {tuple(source.shape)} is stored, {tuple(target.shape)} is asked for")
    target.copy_(source)
    planner.commit_tensor(read, target)


def _as_planner_bytes(wanted: Wanted) -> io.BytesIO:
    """Return a value as DCP's planners expect it: serialised by torch.save, here and now, from verified JSON."""
    data = wanted.bytes_.numpy().tobytes()
    if wanted.item.encoding == "opaque":
        return io.BytesIO(data)
    serialised = io.BytesIO()
    torch.save(decode_value(data), serialised)
    serialised.seek(0)
    return serialised
