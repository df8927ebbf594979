"""Three ways to sum the gradients of micro-batches over ranks, without a network around them: one table.

    .venv/bin/python -m benchmarks.order_free_sums [--processes N] [--rounds N] [--elements N] [--leaves N]

plain: accumulate in place, all-reduce fp32; depends on the world. tree: `fgtrain.buckets`. fixed point: a power-of-two
scale for each tensor, agreed on by a maximum over all micro-batches and ranks, then int64 sums, whose order is free.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.spread import ratios, spread
from benchmarks.table import conditions, render
from fgtrain.buckets import Bucket, cut
from fgtrain.plan import share

TENSORS = 48
BITS = 62  # of an int64 sum: sign and one spare

Leaves = list[list[torch.Tensor]]
"""Of each of a rank's micro-batches, one tensor a parameter."""


def plain(leaves: Leaves, rank: int, shares: Sequence[range]) -> list[torch.Tensor]:
    """Accumulate and all-reduce, in buckets of the tree's size."""
    total = leaves[0]
    for leaf in leaves[1:]:
        torch._foreach_add_(total, leaf)
    works = []
    flats = [torch.cat([t.view(-1) for t in total[r.start : r.stop]]) for r in cut(total)]
    works = [dist.all_reduce(flat, async_op=True) for flat in flats]
    for work in works:
        work.wait()
    return flats


def tree(leaves: Leaves, rank: int, shares: Sequence[range]) -> list[torch.Tensor]:
    """Sum by the fixed tree."""
    ranges = list(cut(leaves[0]))
    buckets = _BUCKETS or [Bucket(leaves[0][r.start : r.stop], shares, rank) for r in ranges]
    _BUCKETS[:] = buckets  # they live as long as the training does
    for bucket, r in zip(buckets, ranges, strict=True):
        bucket.begin_step()
        for number, leaf in zip(shares[rank], leaves, strict=True):
            bucket.push(number, leaf[r.start : r.stop])
        bucket.send()
    for bucket in buckets:
        bucket.combine()
    return [t for bucket in buckets for t in bucket.total()]


_BUCKETS: list[Bucket] = []


def fixed_point(leaves: Leaves, rank: int, shares: Sequence[range]) -> list[torch.Tensor]:
    """Sum as integers. The scales need every gradient, so that nothing can travel before the last is there."""
    peaks = torch.stack([torch.stack(torch._foreach_norm(leaf, float("inf"))) for leaf in leaves]).amax(0)
    dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    room = BITS - (shares[-1].stop - 1).bit_length()
    shifts = [room - e for e in torch.frexp(peaks).exponent.tolist()]
    flat = torch.zeros(sum(t.numel() for t in leaves[0]), dtype=torch.int64)
    sums = torch.split(flat, [t.numel() for t in leaves[0]])
    for leaf in leaves:
        for total, shift, t in zip(sums, shifts, leaf, strict=True):
            total.add_(t.view(-1).mul_(2.0**shift).to(torch.int64))  # exact: a power of two, then fewer than 63 bits
    dist.all_reduce(flat)
    return [total.double().mul_(2.0**-shift).float() for total, shift in zip(sums, shifts, strict=True)]


Way = Callable[[Leaves, int, Sequence[range]], list[torch.Tensor]]
WAYS: dict[str, Way] = {"plain": plain, "tree": tree, "fixed point": fixed_point}
BYTES = {"plain": "4", "tree": "4 x (1 + partial sums) / 2", "fixed point": "8"}


def _measure(rank: int, world: int, meeting: str, elements: int, count: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    shares = [share(count, r, world) for r in range(world)]
    source = [[torch.randn(elements // TENSORS) for _ in range(TENSORS)] for _ in shares[rank]]
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            leaves = [[t.clone() for t in leaf] for leaf in source]
            dist.barrier()
            begun = time.perf_counter()
            WAYS[name](leaves, rank, shares)
            dist.barrier()
            found[name].append(time.perf_counter() - begun)
    if rank == 0:
        torch.save({name: times[1:] for name, times in found.items()}, f"{meeting}.found")
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.order_free_sums", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--elements", type=int, default=12_000_000, help="parameters of the network")
    parser.add_argument("--leaves", type=int, default=8, help="micro-batches of a step")
    args = parser.parse_args(argv)
    print(conditions())
    print(
        f"{args.elements:,} elements, {args.leaves} micro-batches, {args.processes} gloo processes, one thread each\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        job = (args.processes, meeting, args.elements, args.leaves, args.rounds)
        spawn(_measure, job, nprocs=args.processes)  # type: ignore[no-untyped-call]
        found: dict[str, list[float]] = torch.load(f"{meeting}.found")
    rows = []
    for name, times in found.items():
        cost = spread(ratios(times, found["plain"]))
        figures = [f"{spread(times).median * 1e3:.0f}", f"{cost.median:.2f}", f"{cost.low:.2f} to {cost.high:.2f}"]
        rows.append([name, *figures, BYTES[name]])
    print(render(["sum", "ms", "of plain", "quartiles", "bytes an element, each way"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
