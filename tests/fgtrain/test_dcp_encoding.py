"""Properties of what a checkpoint's record is made of: plain values, metadata, blocks."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from fgtrain import manifest as manifests
from fgtrain.dcp import blocks as cutting
from fgtrain.dcp.blocks import Block, blocks_of, chunks_of, needed
from fgtrain.dcp.record import (
    FORMAT,
    Item,
    Record,
    decode,
    encode,
    entries_of,
    metadata_of,
    planner_document,
)
from fgtrain.dcp.values import decode_value, encode_value
from fgtrain.errors import Corrupt, UserError

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | keys | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys | st.integers() | st.tuples(st.integers(), keys), inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    assert repr(decode_value(encode_value(value))) == repr(value)  # repr: tells types and -0.0, and nan from no nan


@given(st.sampled_from([torch.uint8, torch.bool, torch.int64, torch.float32, torch.bfloat16, torch.complex64]))
def test_tensors_within_values_come_back(dtype: torch.dtype) -> None:
    for shape in [(), (0,), (2, 3)]:
        tensor = torch.ones(shape).to(dtype)
        back = decode_value(encode_value((tensor, {"again": tensor})))
        assert torch.equal(back[0], tensor)
        assert back[0].dtype == back[1]["again"].dtype == dtype


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        ({"a": [1, {2, 3}]}, r"its part \['a'\]\[1\] is builtins.set"),
        (Pair(1, 2), "Pair"),
        (np.float64(1.0), "numpy.float64"),
        ("\ud800", "not valid Unicode"),
        (print, "builtin_function"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_type_and_place(value: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        encode_value(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UserError, match="contains itself"):
        encode_value(loop)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_foreign_bytes_are_corrupt_or_plain(data: bytes) -> None:
    with suppress(Corrupt):
        decode_value(data)


@pytest.mark.parametrize("document", ['{"eval":"1"}', '{"int":"x"}', '{"a":1,"b":2}', '{"tensor":["Tensor",[],""]}'])
def test_unknown_tags_are_corrupt(document: str) -> None:
    with pytest.raises(Corrupt):
        decode_value(document.encode())


# -- records ------------------------------------------------------------------------------------------------------

dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.complex128, torch.float8_e4m3fn])
formats = st.sampled_from([torch.contiguous_format, torch.channels_last, torch.preserve_format])


@st.composite
def tensor_metadata(draw: st.DrawFn) -> TensorStorageMetadata:
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    properties = TensorProperties(
        dtype=draw(dtypes),
        requires_grad=draw(st.booleans()),
        memory_format=draw(formats),
        pin_memory=draw(st.booleans()),
    )
    cut = draw(st.integers(1, shape[0])) if shape and shape[0] else None
    rows = [(0, cut), (cut, shape[0] - cut)] if cut and cut < shape[0] else [(0, shape[0])] if shape else []
    boxes = [([o, *[0] * (len(shape) - 1)], [n, *shape[1:]]) for o, n in rows] or [([], [])]
    chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(n)) for o, n in boxes]
    return TensorStorageMetadata(properties, torch.Size(shape), chunks)


paths = st.lists(keys | st.integers(0, 99), min_size=1, max_size=3).map(tuple)
metadatas = st.builds(
    Metadata,
    st.dictionaries(keys, tensor_metadata() | st.builds(BytesStorageMetadata), max_size=6),
    planner_data=st.dictionaries(keys, paths, max_size=4),
    version=st.none() | st.just("1.0.0"),
)


def items_of(metadata: Metadata) -> tuple[Item, ...]:
    found = []
    for fqn, md in metadata.state_dict_metadata.items():
        if isinstance(md, BytesStorageMetadata):
            found.append(Item(fqn=fqn, offset=None, encoding="plain", bytes_=4, blocks=(block(4),)))
            continue
        for chunk in md.chunks:
            bytes_ = chunk.sizes.numel() * md.properties.dtype.itemsize
            blocks = (block(bytes_),) if bytes_ else ()
            offset = tuple(chunk.offsets)
            found.append(Item(fqn=fqn, offset=offset, encoding="tensor", bytes_=bytes_, blocks=blocks))
    return tuple(found)


def block(bytes_: int) -> Block:
    return Block("a" * 64, 3, bytes_, "b" * 64)


def record_of(metadata: Metadata) -> Record:
    return Record(
        format=FORMAT,
        name="n",
        save_id="s",
        created=1.5,
        version=metadata.version,
        entries=entries_of(metadata),
        planner_data=planner_document(metadata.planner_data),
        items=items_of(metadata),
    )


@given(metadatas)
def test_metadata_comes_back_as_it_was(metadata: Metadata) -> None:
    back = metadata_of(decode(encode(record_of(metadata))))
    assert back.state_dict_metadata == metadata.state_dict_metadata
    assert back.planner_data == metadata.planner_data
    assert back.version == metadata.version
    assert back.storage_data == {MetadataIndex(i.fqn, i.offset): i for i in items_of(metadata)}


@given(metadatas, st.data())
def test_an_altered_record_is_corrupt(metadata: Metadata, data: st.DataObject) -> None:
    whole = encode(record_of(metadata))
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Corrupt):
        decode(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    with pytest.raises(Corrupt):
        decode(whole[:at])


@given(metadatas.filter(lambda m: m.state_dict_metadata), st.data())
def test_a_record_that_misses_or_repeats_an_item_is_corrupt(metadata: Metadata, data: st.DataObject) -> None:
    record = record_of(metadata)
    at = data.draw(st.integers(0, len(record.items) - 1))
    missing = record.items[:at] + record.items[at + 1 :]
    for items in (missing, (*record.items, record.items[at])):
        with pytest.raises(Corrupt, match="was not written|was written twice"):
            decode(encode(msgspec.structs.replace(record, items=items)))


def tensor_record(**changes: Any) -> Record:
    md = TensorStorageMetadata(
        TensorProperties(dtype=torch.float32),
        torch.Size([2]),
        [ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))],
    )
    record = record_of(Metadata({"w": md}))
    return msgspec.structs.replace(record, items=(msgspec.structs.replace(record.items[0], **changes),))


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes_": 4},
        {"blocks": (block(4),)},
        {"encoding": "opaque"},
        {"offset": (1,)},
        {"blocks": (Block("../../etc", 0, 8, "b" * 64),)},
        {"blocks": (Block("a" * 64, -1, 8, "b" * 64),)},
    ],
)
def test_a_record_that_describes_what_cannot_be_is_corrupt(changes: dict[str, Any]) -> None:
    decode(encode(tensor_record()))
    with pytest.raises(Corrupt):
        decode(encode(tensor_record(**changes)))


def test_another_format_is_named() -> None:
    other = msgspec.structs.replace(record_of(Metadata({})), format=99)
    with pytest.raises(Corrupt, match="format 99"):
        decode(encode(other))
    with pytest.raises(Corrupt, match="another format"):
        decode(manifests.seal(b'{"format": 1}'))


def test_sparse_tensors_are_refused_by_name() -> None:
    properties = TensorProperties(dtype=torch.float32, layout=torch.sparse_coo)
    with pytest.raises(UserError, match="emb: a tensor of layout torch.sparse_coo"):
        entries_of(Metadata({"emb": TensorStorageMetadata(properties, torch.Size([2]), [])}))


# -- blocks -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=12))
def test_every_byte_lies_in_exactly_one_block(sizes: list[int]) -> None:
    data = [bytes([n]) * size for n, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "CHUNK_BYTES", 16)
        patch.setattr(cutting, "PACK_BELOW", 8)
        chunks = list(chunks_of(map(memoryview, data)))
    assert all(0 < len(chunk.data) <= 16 for chunk in chunks)
    back: dict[int, list[tuple[int, bytes]]] = {n: [] for n in range(len(sizes))}
    for chunk in chunks:
        for part, found in blocks_of(chunk)[1]:
            back[part.item].append((part.number, bytes(chunk.data[found.start : found.start + found.bytes_])))
    assert [b"".join(piece for _, piece in sorted(back[n])) for n in range(len(sizes))] == data


@given(st.data())
def test_needed_blocks_are_those_that_a_box_touches(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), max_size=3))
    offsets = [data.draw(st.integers(0, n - 1)) for n in sizes]
    lengths = [data.draw(st.integers(0, n - o)) for n, o in zip(sizes, offsets, strict=True)]
    itemsize, step = data.draw(st.sampled_from([1, 4])), data.draw(st.integers(1, 40))
    bytes_ = int(np.prod(sizes)) * itemsize
    blocks = [Block("", 0, min(step, bytes_ - at), "") for at in range(0, bytes_, step)]
    owner = np.arange(bytes_).reshape(*sizes, itemsize) // step
    box = owner[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    assert needed(blocks, sizes, offsets, lengths, itemsize) == sorted(set(box.reshape(-1).tolist()))
