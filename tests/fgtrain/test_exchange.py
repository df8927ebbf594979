"""Sharding arithmetic: every byte of every shard goes to the one rank that stages it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fgtrain.manifest import TensorSpan
from fgtrain.shards import rows
from fgtrain.snapshot.exchange import Move, moves, window


@given(st.integers(0, 50), st.integers(1, 9))
def test_rows_cover_a_dimension_once_in_order(count: int, size: int) -> None:
    parts = [rows(count, rank, size) for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) == -(-count // size)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_windows_cut_a_share_into_rounds_that_miss_nothing(bounds: list[tuple[int, int]], each: int) -> None:
    share = {f"g{i}": (start, start + length) for i, (start, length) in enumerate(bounds)}
    wanted = [(g, b) for g, (start, stop) in share.items() for b in range(start, stop)]
    rounds = [window(share, first, first + each) for first in range(0, len(wanted), each)]
    found = [(g, b) for some in rounds for g, (start, stop) in some.items() for b in range(start, stop)]
    assert found == wanted
    assert all(sum(stop - start for start, stop in some.values()) <= each for some in rounds)


@given(st.data())
def test_moves_bring_each_byte_once_from_who_holds_it_to_who_stages_it(data: st.DataObject) -> None:
    world = data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    spans, offset = {}, 0
    for i, (length, gap) in enumerate(zip(lengths, gaps, strict=True)):
        spans[f"t{i}"] = TensorSpan("uint8", (length,), "model", offset + gap, length)
        offset += gap + length
    holders = [{n: _cut(s.bytes_, rank, world) for n, s in spans.items()} for rank in range(world)]
    borders = sorted(data.draw(st.lists(st.integers(0, offset), min_size=world - 1, max_size=world - 1)))
    stages = [{"model": pair} for pair in zip([0, *borders], [*borders, offset], strict=True)]
    seen = [
        (move.name, byte, sender, receiver)
        for sender, held in enumerate(holders)
        for receiver, wanted in enumerate(stages)
        for move in moves(spans, held, wanted)
        for byte in range(move.start, move.stop)
    ]
    assert sorted(s[:2] for s in seen) == [
        (n, b) for n, s in sorted(spans.items()) for b in range(s.offset, s.offset + s.bytes_)
    ]
    for name, byte, sender, receiver in seen:
        start, stop = holders[sender][name]
        assert start <= byte - spans[name].offset < stop
        assert stages[receiver]["model"][0] <= byte < stages[receiver]["model"][1]


def _cut(bytes_: int, rank: int, world: int) -> tuple[int, int]:
    part = rows(bytes_, rank, world)
    return part.start, part.stop


def test_replicated_tensors_are_not_moved() -> None:
    spans = {"a": TensorSpan("uint8", (4,), "model", 0, 4), "b": TensorSpan("uint8", (4,), "model", 4, 4)}
    assert moves(spans, {"b": (2, 4)}, {"model": (0, 8)}) == [Move("b", "model", 6, 8)]
