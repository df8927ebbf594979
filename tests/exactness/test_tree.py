"""The fixed summation tree: any split of the leaves over ranks adds the same pairs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.plan import share
from fgtrain.tree import Node, TreeSum, highest, partials


@st.composite
def splits(draw: st.DrawFn) -> list[range]:
    """Contiguous, non-empty shares of up to 40 leaves."""
    leaves = draw(st.integers(1, 40))
    cuts = sorted(draw(st.sets(st.integers(1, leaves - 1)))) if leaves > 1 else []
    return [range(a, b) for a, b in zip([0, *cuts], [*cuts, leaves], strict=True)]


def summed(shares: list[range], values: list[float]) -> float:
    """Sum as ranks do: each its own leaves, then all partial sums."""
    total: TreeSum[float] = TreeSum(len(values), float.__add__)
    for mine in shares:
        own: TreeSum[float] = TreeSum(len(values), float.__add__)
        for leaf in mine:
            own.push(Node(0, leaf), values[leaf])
        for node, value in own.parts:
            total.push(node, value)
    return total.total()


wild = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(splits(), st.data())
def test_every_split_gives_the_bits_of_one_process(shares: list[range], data: st.DataObject) -> None:
    leaves = shares[-1].stop
    values = data.draw(st.lists(wild, min_size=leaves, max_size=leaves))
    alone, apart = summed([range(leaves)], values), summed(shares, values)
    assert math.isnan(alone) == math.isnan(apart)
    assert math.isnan(alone) or (alone, math.copysign(1, alone)) == (apart, math.copysign(1, apart))


def test_the_property_has_teeth() -> None:
    values = [1e16, 1.0, -1e16, 1.0, 3.0]
    assert summed([range(5)], values) != sum(values)


@given(splits())
def test_a_rank_is_left_with_few_partial_sums(shares: list[range]) -> None:
    leaves = shares[-1].stop
    for mine in shares:
        assert len(partials(leaves, mine)) <= max(1, 2 * math.ceil(math.log2(leaves)) if leaves > 1 else 1)


@pytest.mark.parametrize(("leaves", "world"), [(8, 1), (8, 2), (8, 4), (8, 8), (64, 16), (7, 1), (6, 1)])
def test_an_aligned_share_leaves_one_partial_sum(leaves: int, world: int) -> None:
    assert all(len(partials(leaves, share(leaves, rank, world))) == 1 for rank in range(world))


def test_nodes_without_a_right_half_are_their_left_half() -> None:
    assert highest(Node(0, 6), 7) == Node(1, 3)
    assert highest(Node(0, 6), 8) == Node(0, 6)
    assert highest(Node(0, 0), 1) == Node(0, 0)
    assert highest(Node(0, 4), 5) == Node(2, 1)


def test_the_tree_over_seven_leaves_is_this_one() -> None:
    total: TreeSum[str] = TreeSum(7, lambda left, right: f"({left}{right})")
    for leaf in range(7):
        total.push(Node(0, leaf), str(leaf))
    assert total.total() == "(((01)(23))((45)6))"


def test_a_sum_with_a_leaf_missing_is_refused() -> None:
    total: TreeSum[float] = TreeSum(3, float.__add__)
    total.push(Node(0, 0), 1.0)
    total.push(Node(0, 2), 1.0)
    with pytest.raises(AssertionError, match="missing"):
        total.total()
