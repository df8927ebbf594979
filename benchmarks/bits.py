"""What `determinism="bits"` costs a step beside plain DDP: one table.

    .venv/bin/python -m benchmarks.bits [--processes N] [--rounds N] [--model NAME:SIDE:MICRO:BATCHES]...

In each process two copies of a network train on the same noise, one with each level of determinism, and take turns of a
few steps; the ratio is taken round by round. Both have one CPU thread a process, which `bits` needs: what plain DDP
would gain from more threads, where there are cores for them, is part of the cost on a CPU and not in the table. On CUDA
there are none to lose.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.spread import median_interval, ratios, spread
from benchmarks.table import conditions, render
from fgtrain.bits import settle_kernels
from fgtrain.build import build_state
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.loader import MicroBatch
from fgtrain.models.timm import Timm
from fgtrain.place import Place
from fgtrain.plan import make_plan, share
from fgtrain.recipe import SGD, Batch, Recipe, replace
from fgtrain.step import Stepper, Wishes

MODELS = ("resnet18:64:8:4", "resnet18:64:8:6", "vit_tiny_patch16_224:224:2:4", "resnet50:96:4:4")
LEVELS = ("samples", "bits")
WARMUP_STEPS = 2


Seconds = tuple[float, float]
"""By the clock, and of processor time."""


class Case(NamedTuple):
    """A timm network, the side of its pictures, samples of a micro-batch, and micro-batches of a step."""

    model: str
    side: int
    micro: int
    batches: int


def recipe_of(case: Case) -> Recipe:
    """Return what trains."""
    return Recipe(
        model=Timm(name=case.model, classes=10),
        data=ImageFolder(root="noise", resize=case.side, crop=case.side),
        optim=SGD(lr=0.01),
        batch=Batch(total=case.micro * case.batches, micro=case.micro),
        epochs=10_000,
    )


class Loop:
    """One level's training in one process."""

    def __init__(self, case: Case, level: str, place: Place) -> None:
        recipe = replace(recipe_of(case), determinism=level)
        self._bits = level == "bits"
        self._settle()
        plan = make_plan(recipe, 64 * recipe.batch.total)
        self._stepper = Stepper(recipe, plan, place, build_state(recipe, place.device))
        self._batches = noise(case, len(share(plan.micro_batches, place.rank, place.size)))

    def _settle(self) -> None:
        settle_kernels()  # one thread for both
        torch.use_deterministic_algorithms(self._bits)

    def seconds(self, steps: int) -> Seconds:
        """Return what a step takes: the slowest rank's time by the clock, and this process's processor time."""
        self._settle()
        dist.barrier()
        begun, cpu_begun = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._stepper.step(self._batches, Wishes(), lambda: None)
        cpu_s = time.process_time() - cpu_begun
        dist.barrier()
        return (time.perf_counter() - begun) / steps, cpu_s / steps


def noise(case: Case, batches: int) -> Iterator[MicroBatch]:
    """Yield micro-batches of noise without end, `batches` different ones."""
    images = torch.randint(0, 256, (batches, case.micro, case.side, case.side, 3), dtype=torch.uint8)
    labels = np.arange(case.micro) % 10
    while True:
        for i in range(batches):
            yield MicroBatch(images[i], labels, [(0, n) for n in range(case.micro)], [])


def _measure(rank: int, world: int, meeting: str, case: Case, rounds: int, steps: int) -> None:
    """Run one rank; rank 0 leaves the rounds' seconds in a file."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    place = Place(rank, world, 0, torch.device("cpu"))
    loops = {level: Loop(case, level, place) for level in LEVELS}
    for loop in loops.values():
        loop.seconds(WARMUP_STEPS)
    found: dict[str, list[Seconds]] = {level: [] for level in LEVELS}
    for number in range(rounds):
        for level in LEVELS[:: 1 if number % 2 else -1]:
            found[level].append(loops[level].seconds(steps))
    if rank == 0:
        torch.save(found, f"{meeting}.found")
    dist.destroy_process_group()


def measure(case: Case, world: int, rounds: int, steps: int) -> dict[str, list[Seconds]]:
    """Return each level's seconds a step, a round each."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        spawn(_measure, (world, meeting, case, rounds, steps), nprocs=world)  # type: ignore[no-untyped-call]
        found: dict[str, list[Seconds]] = torch.load(f"{meeting}.found")
    return found


def row(case: Case, found: dict[str, list[Seconds]]) -> list[str]:
    """Word one case."""
    wall, cpu = ({level: [s[i] for s in found[level]] for level in LEVELS} for i in (0, 1))
    times = [f"{spread(wall[level]).median * 1e3:.0f}" for level in LEVELS]
    cost, cpu_cost = (spread(ratios(t["bits"], t["samples"])) for t in (wall, cpu))
    name = f"{case.model}, {case.side} px, {case.batches} x {case.micro}"
    costs = [
        _percent(cost.median),
        _between(cost.low, cost.high),
        _between(*median_interval(ratios(wall["bits"], wall["samples"]))),
    ]
    verdict = "met" if cost.median < 1.15 else "missed"
    return [name, *times, *costs, _percent(cpu_cost.median), _between(cpu_cost.low, cpu_cost.high), verdict]


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def _between(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.bits", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--model", action="append", metavar="NAME:SIDE:MICRO:BATCHES", help=f"default: {MODELS}")
    args = parser.parse_args(argv)
    print(conditions(("torch", "timm")))
    print(f"{args.processes} gloo processes, one thread each; {args.rounds} rounds of {args.steps} steps a level\n")
    rows = []
    for text in args.model or MODELS:
        name, *numbers = text.split(":")
        case = Case(name, *map(int, numbers))
        rows.append(row(case, measure(case, args.processes, args.rounds, args.steps)))
        print(*rows[-1], sep="  ", file=sys.stderr)
    times = ["samples ms", "bits ms", "cost", "quartiles", "95 %", "CPU cost", "quartiles"]
    headers = ["network, pictures, micro-batches", *times, "cost < 15 %"]
    print(render(headers, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
