"""Exchange: shards of the state, sent to the ranks that stage the bytes they are.

What a rank holds of a sharded tensor follows from the strategy and the world; what it stages and stores follows from
the snapshot's layout, which depends on neither: so chunks are shared, compared and read back whoever wrote them. In
between, every rank sends each other rank what that one stages of its shards: about 1/N of the state in and out a rank,
in rounds, so that little memory is needed besides. It happens at once, after the step, before the shards can change.

Bytes are counted in their group. Shapes: none, all is flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import torch
import torch.distributed as dist

from fgtrain.manifest import TensorSpan
from fgtrain.place import Place, from_all
from fgtrain.shards import Sharded
from fgtrain.snapshot.layout import Layout, Tensors

ROUND_BYTES = 32 << 20  # that a rank takes in at a time

Held = Mapping[str, tuple[int, int]]
"""name -> the bytes [start, stop) of that tensor that a rank holds."""

Stretches = Mapping[str, tuple[int, int]]
"""group -> bytes [start, stop) of it."""


class Move(NamedTuple):
    """Bytes [start, stop) of a group, all of one tensor."""

    name: str
    group: str
    start: int
    stop: int


def window(share: Stretches, first: int, last: int) -> dict[str, tuple[int, int]]:
    """Return the bytes from number `first` up to `last` of a share, counted through its groups in order."""
    found, passed = {}, 0
    for group, (start, stop) in share.items():
        lo, hi = max(first - passed, 0), min(last - passed, stop - start)
        if lo < hi:
            found[group] = (start + lo, start + hi)
        passed += stop - start
    return found


def moves(spans: Mapping[str, TensorSpan], held: Held, wanted: Stretches) -> list[Move]:
    """Return what of the bytes `wanted` a rank that holds `held` has, in the order of the spans."""
    found = []
    for name, span in spans.items():
        if name not in held or span.group not in wanted:
            continue
        (start, stop), (first, last) = held[name], wanted[span.group]
        lo, hi = max(span.offset + start, first), min(span.offset + stop, last)
        if lo < hi:
            found.append(Move(name, span.group, lo, hi))
    return found


class Exchange:
    """The exchange of one layout; all ranks make it, and call it, together."""

    def __init__(self, layout: Layout, tensors: Tensors, place: Place) -> None:
        self._place = place
        self._spans = {n: s for n, s in layout.spans.items() if isinstance(tensors[s.group][n], Sharded)}
        shards = {n: t for some in tensors.values() for n, t in some.items() if isinstance(t, Sharded)}
        self._device = next(iter(shards.values())).local.device
        self._held: list[Held] = from_all({n: t.held for n, t in shards.items()}, place)
        self._shares = [layout.share(rank, place.size) for rank in range(place.size)]

    def run(self, tensors: Tensors, targets: Mapping[str, torch.Tensor], skip: Set[str]) -> None:
        """Bring the shards to where they are staged.

        Args:
            tensors: the live state.
            targets: group -> flat uint8 memory for all of this rank's share of it.
            skip: groups that no rank stages anew.
        """
        shares = [{g: s for g, s in share.items() if g not in skip} for share in self._shares]
        most = max(sum(stop - start for start, stop in share.values()) for share in shares)
        for first in range(0, most, ROUND_BYTES):
            self._round(tensors, targets, [window(share, first, first + ROUND_BYTES) for share in shares])

    def _round(
        self, tensors: Tensors, targets: Mapping[str, torch.Tensor], windows: Sequence[dict[str, tuple[int, int]]]
    ) -> None:
        me = self._place.rank
        out = [moves(self._spans, self._held[me], wanted) for wanted in windows]
        into = [moves(self._spans, held, windows[me]) for held in self._held]
        pieces = [self._piece(tensors, move) for some in out for move in some]
        sent = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8, device=self._device)
        received = torch.empty(sum(map(_bytes, into)), dtype=torch.uint8, device=self._device)
        dist.all_to_all_single(received, sent, [*map(_bytes, into)], [*map(_bytes, out)])
        at = 0
        for move in (m for some in into for m in some):
            length, start = move.stop - move.start, move.start - self._shares[me][move.group][0]
            targets[move.group][start : start + length].copy_(received[at : at + length], non_blocking=True)
            at += length

    def _piece(self, tensors: Tensors, move: Move) -> torch.Tensor:
        """Return the bytes of a move out of this rank's shard."""
        shard = tensors[move.group][move.name]
        assert isinstance(shard, Sharded)
        begin = self._spans[move.name].offset + shard.held[0]
        return shard.local.detach().reshape(-1).view(torch.uint8)[move.start - begin : move.stop - begin]


def _bytes(some: Sequence[Move]) -> int:
    return sum(move.stop - move.start for move in some)
