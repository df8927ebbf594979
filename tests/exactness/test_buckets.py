"""Buckets between real processes: every element is summed in the order of the tree, whatever the world."""

from __future__ import annotations

import functools

import pytest
import torch

from fgtrain.buckets import Bucket, cut
from fgtrain.place import Place
from fgtrain.plan import share
from fgtrain.tree import Node, TreeSum
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train

SHAPES = ((5, 3, 2, 2), (), (7,), (130,), (1, 4, 1, 1))
WILD = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, 3e38, -3e38])


def leaf(number: int) -> list[torch.Tensor]:
    """Make a micro-batch's tensors, of wild magnitudes and with some special values; the first is channels-last."""
    draw = torch.Generator().manual_seed(number)
    tensors = []
    for shape in SHAPES:
        t = torch.randn(shape, generator=draw) * 10.0 ** torch.randint(-8, 8, shape, generator=draw)
        special = torch.rand(shape, generator=draw) < 0.2
        tensors.append(torch.where(special, WILD[torch.randint(0, len(WILD), shape, generator=draw)], t))
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return tensors


def two_steps(place: Place, leaves: int) -> list[list[torch.Tensor]]:
    """Sum the leaves twice with the same bucket; returns both steps' sums."""
    shares = [share(leaves, rank, place.size) for rank in range(place.size)]
    bucket = Bucket(leaf(0), shares, place.rank)
    found = []
    for step in range(2):
        bucket.begin_step()
        for number in shares[place.rank]:
            bucket.push(number, leaf(100 * step + number))
        bucket.send()
        bucket.combine()
        totals = bucket.total()
        assert totals[0].stride() == leaf(0)[0].stride()
        found.append([t.clone() for t in totals])
    return found


def by_hand(leaves: int, step: int) -> list[torch.Tensor]:
    total: TreeSum[list[torch.Tensor]] = TreeSum(leaves, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])
    for number in range(leaves):
        total.push(Node(0, number), leaf(100 * step + number))
    return total.total()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare bit by bit, all NaNs being one."""
    bits = [torch.where(t.isnan(), torch.full_like(t, 7), t).contiguous().view(torch.int32) for t in (a, b)]
    return bool((a.isnan() == b.isnan()).all()) and torch.equal(*bits)


@pytest.mark.parametrize(
    ("leaves", "world"), [(1, 1), (6, 1), (2, 2), (5, 2), (8, 2), (3, 3), (8, 3), (13, 3), (4, 4), (7, 4), (16, 4)]
)
def test_every_element_is_summed_in_the_order_of_the_tree(ranks: Ranks, leaves: int, world: int) -> None:
    for found in ranks.call(world, two_steps, leaves):
        for step in range(2):
            pairs = zip(found[step], by_hand(leaves, step), strict=True)
            assert all(same_bits(a, b) for a, b in pairs)


def test_the_comparison_tells_zeros_apart() -> None:
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))


def test_tensors_are_cut_by_size_and_dtype() -> None:
    tensor = functools.partial(torch.zeros, dtype=torch.float32)
    likes = [tensor(10), tensor(10), tensor(100), torch.zeros(1, dtype=torch.float64), tensor(1)]
    assert list(cut(likes, bucket_bytes=80)) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert list(cut([])) == []
