"""Peak memory a rank under DDP, FSDP and ZeRO 1, 2, 3, beside the arithmetic that `--dry-run` prints.

Each strategy trains in fresh processes, in fp32 and in bf16. The peak is of a whole step after the first, by the
kernel's own count (VmHWM), less what the process held before its model was made: by then it has trained a tiny network,
as torch imports much, and allocates some, only at the first step.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.bits import Case, noise
from benchmarks.table import conditions, render
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.memory import Estimate, estimate
from fgtrain.models.timm import Timm
from fgtrain.parts import from_json, to_json
from fgtrain.place import Place
from fgtrain.plan import make_plan, share
from fgtrain.recipe import AdamW, Batch, Recipe, replace
from fgtrain.sizes import measure
from fgtrain.step import Stepper, Wishes
from fgtrain.strategies import Strategy
from fgtrain.strategies.ddp import DDP
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO

STRATEGIES: dict[str, Strategy] = {
    "ddp": DDP(),
    "fsdp": FSDP(),
    "zero1": ZeRO(stage=1),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3),
}
PRECISIONS = ("fp32", "bf16")
BAR = 0.15
STEPS = 2
TINY = Case("test_vit", 160, 1, 2)


def recipe_of(case: Case, strategy: Strategy) -> Recipe:
    """Return the recipe of a case."""
    return Recipe(
        model=Timm(name=case.model, classes=10),
        data=ImageFolder(root="made up", resize=case.side, crop=case.side),
        optim=AdamW(lr=1e-4),
        batch=Batch(total=case.micro * case.batches, micro=case.micro),
        epochs=10_000,
        strategy=strategy,
    )


def _train(rank: int, world: int, port: int, case: Case, recipe: bytes, answer: str) -> None:
    """Run one rank; rank 0 leaves its peak in a file."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    place = Place(rank, world, 0, torch.device("cpu"))
    chosen = from_json(recipe, Recipe)
    tiny = TINY._replace(batches=2 * world)
    model, data = (getattr(recipe_of(tiny, chosen.strategy), part) for part in ("model", "data"))
    _steps(tiny, replace(chosen, model=model, data=data, batch=Batch(total=2 * world, micro=1)), place)
    gc.collect()
    before = _status("VmRSS")
    _steps(case, chosen, place)
    if rank == 0:
        Path(answer).write_text(str(_status("VmHWM") - before))
    dist.destroy_process_group()


def _steps(case: Case, recipe: Recipe, place: Place) -> None:
    """Train for some steps; the process's peak is that of all but the first."""
    plan = make_plan(recipe, 64 * recipe.batch.total)
    stepper = Stepper(recipe, plan, place, recipe.strategy.build(recipe, place))
    batches = noise(case, len(share(plan.micro_batches, place.rank, place.size)))
    stepper.step(batches, Wishes(), lambda: None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew. Source: proc(5)
    for _ in range(STEPS):
        stepper.step(batches, Wishes(), lambda: None)


def _status(field: str) -> int:
    """Return one of this process's sizes in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak(case: Case, recipe: Recipe, world: int) -> int:
    """Return the peak of rank 0 in bytes."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        answer = Path(folder) / "answer"
        spawn(_train, (world, port, case, to_json(recipe), str(answer)), nprocs=world)  # type: ignore[no-untyped-call]
        return int(answer.read_text())


def row(name: str, expected: Estimate, found: int) -> list[str]:
    """Word one strategy."""
    off = expected.total / found - 1
    parts = [f"{value / 1e6:.0f}" for value in expected]
    verdict = "met" if abs(off) <= BAR else "missed"
    return [name, *parts, f"{expected.total / 1e6:.0f}", f"{found / 1e6:.0f}", f"{off * 100:+.1f} %", verdict]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="vit_base_patch16_224:224:2:8", metavar="NAME:SIDE:MICRO:BATCHES")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="default: all")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="default: all")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args(argv)
    # Freed memory goes back to the kernel at once, so that what it counts is what is in use.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    name, *numbers = args.model.split(":")
    case = Case(name, *map(int, numbers))
    print(conditions(("torch", "timm", "deepspeed")))
    how = "AdamW, checkpointing" if args.checkpointing else "AdamW"
    print(
        f"{name}, {case.side} px, {case.batches} x {case.micro} a step, {how}; {args.processes} processes; MB a rank\n"
    )
    rows = []
    for chosen, precision in product(args.strategy or STRATEGIES, args.precision or PRECISIONS):
        recipe = recipe_of(case, STRATEGIES[chosen])
        recipe = replace(recipe, precision=precision, checkpointing=args.checkpointing)
        expected = estimate(measure(recipe), recipe, args.processes)
        rows.append(row(f"{chosen} {precision}", expected, peak(case, recipe, args.processes)))
        print(*rows[-1], sep="  ", file=sys.stderr)
    print(render(["strategy", *Estimate._fields, "estimate", "peak", "off", "within 15 %"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
