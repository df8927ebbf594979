"""Where prepared pictures lie."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from fgtrain.cache.shards import SEAL_BYTES, Item, shards
from fgtrain.preparation import Preparation

ITEMS = st.lists(
    st.builds(
        lambda n, w, h: Item(hashlib.sha256(str(n).encode()).hexdigest(), w, h),
        st.integers(0, 10**6),
        st.integers(1, 40),
        st.integers(1, 40),
    ),
    max_size=60,
)
PREPARE = Preparation(16)


@given(ITEMS, st.integers(1, 20_000))
def test_every_item_lies_in_one_shard_and_none_overlap(items: list[Item], most: int) -> None:
    layout = shards(items, PREPARE, "us", most=most)
    assert sorted(i for s in layout for i in s.items) == sorted(set(items))
    for shard in layout:
        ends = [o + i.bytes_ for o, i in zip(shard.offsets, shard.items, strict=True)]
        assert list(shard.offsets) == [0, *ends[:-1]]
        assert shard.flags_at == ends[-1]
        assert shard.bytes_ == ends[-1] + len(shard.items) + SEAL_BYTES


@given(ITEMS)
def test_order_and_repeats_do_not_matter(items: list[Item]) -> None:
    assert shards([*items[::-1], *items], PREPARE, "us") == shards(items, PREPARE, "us")


def test_one_picture_more_changes_one_shard() -> None:
    items = [Item(hashlib.sha256(bytes([n])).hexdigest(), 10, 10) for n in range(200)]
    before, after = (shards(some, PREPARE, "us", most=4000) for some in (items[:-1], items))
    assert len(before) == len(after) > 10
    assert len({s.name for s in after} - {s.name for s in before}) == 1


def test_names_tell_preparations_and_makers_apart() -> None:
    items = [Item("0" * 64, 10, 10)]
    ways = [(PREPARE, "us"), (Preparation(17), "us"), (Preparation(16, enlarge=False), "us"), (PREPARE, "them")]
    assert len({shards(items, prepare, by)[0].name for prepare, by in ways}) == len(ways)
