"""Buckets: gradients laid out flat and exchanged between ranks, every element summed in the order of one tree.

Each rank owns one slice of a bucket. It gets that slice of every rank's partial sums (all-to-all), adds them in the
tree's order, and gives the result to all (all-gather). Where every rank is left with one partial sum, as with world
sizes that are powers of two and divide the micro-batches, that is the traffic of a ring all-reduce; where shares lie
askew in the tree, the first half sends each partial sum there is.

Shapes: W ranks, K partial sums of one rank, M elements of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from fgtrain.tree import Node, TreeSum, partials

BUCKET_BYTES = 8 << 20
# Its name since torch 2.13; the older one, which warns there, is the only one before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_ALIGN = 128  # elements: kernels may sum a tensor in another order when it begins at an odd address


class Bucket:
    """Tensors of one dtype that are summed and travel together."""

    def __init__(self, likes: Sequence[torch.Tensor], shares: Sequence[range], rank: int) -> None:
        """Lay out the tensors.

        Args:
            likes: tensors of the shapes, strides, dtype and device to sum.
            shares: the leaves of every rank, ascending.
            rank: this process's.
        """
        self._leaves, self._rank = shares[-1].stop, rank
        self._nodes = [partials(self._leaves, mine) for mine in shares]
        self._likes = likes
        self._sum = self._empty_sum()
        self._work: dist.Work | None = None
        if len(shares) > 1:
            self._lay_out(len(shares))

    def _lay_out(self, ranks: int) -> None:
        """Make the flat buffer (W * M elements) and the tensors' views of it."""
        offsets, end = [], 0
        for like in self._likes:
            offsets.append(end)
            end += -(-like.numel() // _ALIGN) * _ALIGN
        slice_elements = -(-end // (ranks * _ALIGN)) * _ALIGN
        first = self._likes[0]
        self._flat_WM = torch.zeros(ranks, slice_elements, dtype=first.dtype, device=first.device)
        flat = self._flat_WM.view(-1)
        strides = [torch.empty_like(t, device="meta").stride() for t in self._likes]
        self._views = [
            flat.as_strided(t.size(), s, offset) for t, s, offset in zip(self._likes, strides, offsets, strict=True)
        ]

    def _empty_sum(self) -> TreeSum[list[torch.Tensor]]:
        return TreeSum(self._leaves, _add_all)

    def begin_step(self) -> None:
        """Forget the last step's sum."""
        self._sum = self._empty_sum()

    def push(self, leaf: int, values: list[torch.Tensor]) -> None:
        """Take in one micro-batch's tensors, which become the bucket's own."""
        self._sum.push(Node(0, leaf), values)

    def send(self) -> None:
        """Begin to give every rank its slice of this rank's partial sums; nothing else is pushed in this step."""
        if len(self._nodes) == 1:
            return
        ranks, elements = self._flat_WM.shape
        counts = [len(nodes) for nodes in self._nodes]
        own = counts[self._rank]
        self._sent = self._packed()
        self._received = self._flat_WM.new_empty(sum(counts), elements)
        self._work = dist.all_to_all_single(
            self._received.view(-1),
            self._sent.view(-1),
            output_split_sizes=[count * elements for count in counts],
            input_split_sizes=[own * elements] * ranks,
            async_op=True,
        )

    def _packed(self) -> torch.Tensor:
        """Return this rank's partial sums as (W, K, M); a single one stays in the flat buffer."""
        parts = [values for _, values in self._sum.parts]
        if len(parts) == 1:
            torch._foreach_copy_(self._views, parts[0])
            return self._flat_WM
        packed_WKM = self._flat_WM.new_empty(self._flat_WM.shape[0], len(parts), self._flat_WM.shape[1])
        for k, values in enumerate(parts):
            torch._foreach_copy_(self._views, values)
            packed_WKM[:, k] = self._flat_WM
        return packed_WKM

    def combine(self) -> None:
        """Sum this rank's slice and begin to give it to all."""
        if self._work is None:
            return
        self._work.wait()
        total: TreeSum[torch.Tensor] = TreeSum(self._leaves, torch.Tensor.add_)
        nodes = [node for nodes in self._nodes for node in nodes]
        for node, slice_M in zip(nodes, self._received, strict=True):
            total.push(node, slice_M)
        self._slice = total.total()
        self._work = _all_gather(self._flat_WM.view(-1), self._slice, async_op=True)

    def total(self) -> list[torch.Tensor]:
        """Return the sums over all leaves; they may be overwritten in the next step."""
        if self._work is None:
            return self._sum.total()
        self._work.wait()
        self._work = None
        self.begin_step()
        return self._views


def _add_all(left: list[torch.Tensor], right: list[torch.Tensor]) -> list[torch.Tensor]:
    torch._foreach_add_(left, right)
    return left


def cut(likes: Sequence[torch.Tensor], bucket_bytes: int = BUCKET_BYTES) -> Iterator[range]:
    """Yield consecutive ranges of tensors of one dtype, each closed once it holds `bucket_bytes`."""
    start = bytes_ = 0
    for i, like in enumerate(likes):
        if i > start and (bytes_ >= bucket_bytes or like.dtype != likes[start].dtype):
            yield range(start, i)
            start, bytes_ = i, 0
        bytes_ += like.nbytes
    if likes:
        yield range(start, len(likes))
