"""The record of a checkpoint: DCP's metadata and where every byte lies, as JSON under a checksum.

<prefix>/checkpoints/<name>     one record; its existence is the commit
<prefix>/chunks/<hh>/<sha256>   contents, shared by the checkpoints of the prefix
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from fgtrain import manifest as manifests
from fgtrain.dcp.blocks import Block
from fgtrain.dcp.names import named, torch_name
from fgtrain.dcp.values import tagged, untagged
from fgtrain.errors import Corrupt, UserError
from fgtrain.sealed import seal, unseal
from fgtrain.stores import Store, valid_key

FORMAT = 1
# What fglaunch keeps at the top of a store, and collects the garbage of.
RESERVED = ("chunks", "housekeeping", "probe", "runs", "trash")
_SHA256 = re.compile("[0-9a-f]{64}")

Encoding = Literal["tensor", "plain", "opaque"]
"""How the bytes of an item are to be read: C order and little-endian; JSON of a plain value; only the planner knows."""


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shard of a tensor (`offset` in elements, from the tensor's origin) or one value (no offset)."""

    fqn: str
    offset: tuple[int, ...] | None
    encoding: Encoding
    bytes_: int
    blocks: tuple[Block, ...]

    @property
    def key(self) -> Key:
        """What DCP looks it up by."""
        return self.fqn, self.offset


Key = tuple[str, tuple[int, ...] | None]


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """A box within a tensor, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, tag="tensor", forbid_unknown_fields=True):
    """`TensorStorageMetadata`, with torch's constants by name."""

    dtype: str
    layout: str
    memory_format: str
    requires_grad: bool
    pin_memory: bool
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]


class ValueEntry(msgspec.Struct, frozen=True, tag="value", forbid_unknown_fields=True):
    """`BytesStorageMetadata`: something that is not a tensor."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A committed checkpoint. `created` in Unix seconds; `save_id` differs between any two saves."""

    format: int
    name: str
    save_id: str
    created: float
    version: str | None
    entries: dict[str, TensorEntry | ValueEntry]
    planner_data: Any
    items: tuple[Item, ...]


def record_key(prefix: str, name: str) -> str:
    """Return the store key of a record."""
    return f"{prefix}/checkpoints/{name}"


def chunk_key(prefix: str, digest: str) -> str:
    """Return the store key of a chunk of this prefix."""
    return f"{prefix}/{manifests.chunk_key(digest)}"


def checked_prefix(prefix: str) -> str:
    """Return a prefix without slashes around it.

    Raises:
        UserError: a store cannot hold it, or keeps something else there.
    """
    try:
        found = valid_key(prefix.strip("/"))
    except ValueError as error:
        raise UserError(f"prefix {prefix!r}: {error}") from error
    if found.split("/")[0] in RESERVED:
        raise UserError(f"prefix {prefix!r}: {', '.join(RESERVED)} are kept for fglaunch's own runs")
    return found


def checked_name(name: str) -> str:
    """Return the name of a checkpoint.

    Raises:
        UserError: it is empty, or not one segment of a store's key.
    """
    try:
        if "/" not in valid_key(name):
            return name
    except ValueError:
        pass
    raise UserError(f"checkpoint {name!r}: give it a name of one part, as step-1000")


class NamedCheckpoints:
    """The part of torch's storage protocols that asks about names."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell whether a checkpoint can have this name."""
        try:
            checked_name(os.fspath(checkpoint_id))
        except UserError:
            return False
        return True


def checkpoints(store: Store, prefix: str) -> list[str]:
    """Return the names of the committed checkpoints of a prefix, oldest first.

    Those of the same second (some stores count no finer) are in the natural order of their names: step-9, step-10.
    """
    folder = record_key(checked_prefix(prefix), "")
    found = [(e.modified, e.key[len(folder) :]) for e in store.list(folder)]
    return [name for _, name in sorted(found, key=lambda f: (f[0], _natural(f[1]))) if "/" not in name]


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key under which numbers in a text count by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def encode(record: Record) -> bytes:
    """Encode with a checksum of its own in the first line."""
    return seal(msgspec.json.encode(record, order="deterministic"))


def decode(data: bytes) -> Record:
    """Decode what `encode` wrote.

    Raises:
        Corrupt: truncated, altered, of a format this version does not know, or describing what cannot be.
    """
    try:
        record = msgspec.json.decode(unseal(data, "the checkpoint"), type=Record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"a checkpoint of another format: {error}") from error
    if record.format != FORMAT:
        raise Corrupt(f"a checkpoint of format {record.format}; this version reads {FORMAT}")
    check_items(record.entries, record.items)
    return record


def check_items(entries: dict[str, TensorEntry | ValueEntry], items: Iterable[Item]) -> None:
    """Check that every byte which the entries describe is stored exactly once.

    Raises:
        Corrupt: names the tensor or value that is missing, or stored twice, or of another size.
    """
    stored = {item.key: item for item in items}
    counts = Counter(item.key for item in items)
    planned = {key: bytes_ for fqn, entry in entries.items() for key, bytes_ in _planned(fqn, entry).items()}
    for key in planned.keys() ^ counts.keys():
        raise Corrupt(f"{_label(key)} {'was not written' if key in planned else 'was not planned'}")
    for key, item in stored.items():
        if counts[key] > 1:
            raise Corrupt(f"{_label(key)} was written twice")
        if planned[key] not in (None, item.bytes_) or sum(b.bytes_ for b in item.blocks) != item.bytes_:
            raise Corrupt(f"{_label(key)} has the wrong size")
        if (planned[key] is None) != (item.encoding != "tensor"):
            raise Corrupt(f"{_label(key)} is encoded as {item.encoding}")
        if any(not _sound(block) for block in item.blocks):
            raise Corrupt(f"{_label(key)} lies where nothing can be")


def _planned(fqn: str, entry: TensorEntry | ValueEntry) -> dict[Key, int | None]:
    """Return the bytes of each item that an entry consists of; None where only the writer knows."""
    if isinstance(entry, ValueEntry):
        return {(fqn, None): None}
    if any(len(s.offsets) != len(entry.shape) or len(s.sizes) != len(entry.shape) for s in entry.shards):
        raise Corrupt(f"{fqn}: a shard with another number of dimensions than the tensor")
    if any(n < 0 for s in entry.shards for n in s.sizes):
        raise Corrupt(f"{fqn}: a shard of negative size")
    itemsize = named(entry.dtype, torch.dtype).itemsize
    return {(fqn, s.offsets): math.prod(s.sizes) * itemsize for s in entry.shards}


def _sound(block: Block) -> bool:
    named_well = _SHA256.fullmatch(block.chunk) and _SHA256.fullmatch(block.digest)
    return bool(named_well) and block.start >= 0 and block.bytes_ > 0


def _label(key: Key) -> str:
    fqn, offset = key
    return f"{fqn} at {list(offset)}" if offset and any(offset) else fqn


def entries_of(metadata: Metadata) -> dict[str, TensorEntry | ValueEntry]:
    """Describe what a save consists of.

    Raises:
        UserError: a tensor of a layout that has no plain bytes.
    """
    return {fqn: _entry(fqn, md) for fqn, md in metadata.state_dict_metadata.items()}


def _entry(fqn: str, md: STORAGE_TYPES) -> TensorEntry | ValueEntry:
    if not isinstance(md, TensorStorageMetadata):
        return ValueEntry()
    if md.properties.layout is not torch.strided:
        raise UserError(f"{fqn}: a tensor of layout {md.properties.layout}; save its parts, as dense tensors")
    return TensorEntry(
        dtype=torch_name(md.properties.dtype),
        layout=torch_name(md.properties.layout),
        memory_format=torch_name(md.properties.memory_format),
        requires_grad=md.properties.requires_grad,
        pin_memory=md.properties.pin_memory,
        shape=tuple(md.size),
        shards=tuple(Shard(tuple(c.offsets), tuple(c.sizes)) for c in md.chunks),
    )


def planner_document(data: Any) -> Any:
    """Return a planner's own data in JSON's types.

    Raises:
        UserError: it is not plain.
    """
    try:
        return tagged(data)
    except UserError as error:
        raise UserError(f"the planner's own data: {error}") from error


def metadata_of(record: Record) -> Metadata:
    """Return DCP's metadata; its `storage_data` is the items, by `MetadataIndex`.

    Raises:
        Corrupt: it names a dtype or the like that this torch does not have.
    """
    return Metadata(
        state_dict_metadata={fqn: _storage_metadata(entry) for fqn, entry in record.entries.items()},
        planner_data=untagged(record.planner_data),
        storage_data={MetadataIndex(i.fqn, i.offset): i for i in record.items},
        version=record.version,
    )


def _storage_metadata(entry: TensorEntry | ValueEntry) -> STORAGE_TYPES:
    if isinstance(entry, ValueEntry):
        return BytesStorageMetadata()
    properties = TensorProperties(
        dtype=named(entry.dtype, torch.dtype),
        layout=named(entry.layout, torch.layout),
        requires_grad=entry.requires_grad,
        memory_format=named(entry.memory_format, torch.memory_format),
        pin_memory=entry.pin_memory,
    )
    chunks = [ChunkStorageMetadata(torch.Size(s.offsets), torch.Size(s.sizes)) for s in entry.shards]
    return TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
