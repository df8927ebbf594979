"""Manifests: every planned chunk exactly once, damage always noticed, names in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import Corrupt
from fgtrain.manifest import (
    FORMAT,
    Group,
    Manifest,
    Segment,
    TensorSpan,
    chunk_count,
    chunk_sizes,
    cover,
    decode,
    encode,
    manifest_name,
    weights_digest,
)


def manifest(step: int = 7, attempt: int = 2) -> Manifest:
    return Manifest(
        format=FORMAT,
        run="run",
        step=step,
        attempt=attempt,
        parent=None,
        created=1.5,
        world=2,
        determinism="samples",
        weights="w",
        bytes_new=10,
        bytes_shared=0,
        groups={"trained": Group(10, 4, ("a", "b", "c"))},
        tensors={"head": TensorSpan("float32", (2,), "trained", 0, 8)},
        values={"best": {"top1": 0.5}},
        logs={"metrics": (Segment(0, 7, "d", 99),)},
    )


@given(st.integers(0, 40), st.integers(1, 8), st.data())
def test_chunks_shared_out_among_ranks_join_in_order(count: int, ranks: int, data: st.DataObject) -> None:
    parts: list[dict[int, str]] = [{} for _ in range(ranks)]
    for chunk in data.draw(st.permutations(range(count))):
        parts[data.draw(st.integers(0, ranks - 1))][chunk] = f"digest{chunk}"
    assert cover(count, parts) == tuple(f"digest{i}" for i in range(count))


@given(st.integers(1, 40), st.data())
def test_missing_chunk_is_noticed(count: int, data: st.DataObject) -> None:
    missing = data.draw(st.integers(0, count - 1))
    with pytest.raises(Corrupt, match=f"{count} chunks planned, {count - 1} written"):
        cover(count, [{i: "x" for i in range(count) if i != missing}])


@given(st.integers(1, 40), st.data())
def test_chunk_of_two_ranks_is_noticed(count: int, data: st.DataObject) -> None:
    twice = data.draw(st.integers(0, count - 1))
    with pytest.raises(Corrupt, match=f"chunk {twice} was written by two ranks"):
        cover(count, [{i: "x" for i in range(count)}, {twice: "x"}])


def test_chunk_that_was_not_planned_is_noticed() -> None:
    with pytest.raises(Corrupt):
        cover(2, [{0: "x", 1: "x"}, {2: "x"}])


@given(st.integers(0, 10**4), st.integers(1, 10**3))
def test_chunks_fill_their_group_exactly(bytes_: int, chunk_bytes: int) -> None:
    sizes = chunk_sizes(Group(bytes_, chunk_bytes, ("x",) * chunk_count(bytes_, chunk_bytes)))
    assert sum(sizes) == bytes_
    assert all(s == chunk_bytes for s in sizes[:-1])
    assert all(0 < s <= chunk_bytes for s in sizes)


def test_manifest_survives_encoding() -> None:
    assert decode(encode(manifest())) == manifest()


@given(st.data())
def test_any_changed_or_missing_byte_is_noticed(data: st.DataObject) -> None:
    whole = encode(manifest())
    place = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        decode(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
    with pytest.raises(Corrupt):
        decode(whole[:place])


def test_field_of_another_version_is_noticed() -> None:
    import hashlib

    body = encode(manifest()).partition(b"\n")[2].replace(b'"world":2', b'"world":2,"new":1')
    with pytest.raises(Corrupt, match="another format"):
        decode(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@given(st.tuples(st.integers(0, 10**9), st.integers(0, 10**4)), st.tuples(st.integers(0, 10**9), st.integers(0, 10**4)))
def test_names_sort_by_step_then_attempt(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (manifest_name(*one) < manifest_name(*other)) == (one < other)


def test_chunks_lists_groups_and_logs_with_their_sizes() -> None:
    assert manifest().chunks() == {"a": 4, "b": 4, "c": 2, "d": 99}


def test_weights_digest_depends_on_bytes_and_on_where_tensors_lie() -> None:
    base = manifest()

    def digest(groups: dict[str, Group], tensors: dict[str, TensorSpan]) -> str:
        return weights_digest(groups, tensors, ["trained"])

    same = digest(base.groups | {"optimizer": Group(4, 4, ("o",))}, base.tensors)
    assert same == digest(base.groups, base.tensors)
    assert same != digest({"trained": Group(10, 4, ("a", "b", "x"))}, base.tensors)
    assert same != digest(base.groups, {"head": TensorSpan("float32", (2,), "trained", 2, 8)})
