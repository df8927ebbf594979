"""How many images a second our training loop takes in, beside a hand-written one, timm's, Accelerate and Lightning.

    .venv/bin/python -m benchmarks.throughput [RECIPE] [--set path=value]... [--rounds N] [--no-peers] ...

All loops train the same network on the same pictures with the same augmentation, optimizer, micro-batches, loader
processes and threads. They live side by side and take turns of a few steps (see `benchmarks.turns`); the ratio is
taken round by round and its median is compared with the bar.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers, turns
from benchmarks.spread import median_interval, ratios, spread
from benchmarks.synthetic import write_folder
from benchmarks.table import conditions, render
from fgtrain.errors import FglaunchError, RecipeError
from fgtrain.plan import World
from fgtrain.runstore import RunFile
from fgtrain.snapshot.memory import forget, memory_folder
from fgtrain.stores import open_store
from launcher import engine, hardware
from launcher.prepare import prepare, register

SYNTHETIC = peers.ROOT / "benchmarks" / "synthetic_recipe.py"
WARMUP_STEPS = 3
PICTURES = 512
# Snapshots and evaluations have figures of their own; a run that ends would end the comparison.
NEVER = ("snapshots.auto=false", "snapshots.memory_steps=0", "evaluate.every_epochs=0", "epochs=1e6")

GPU = ("channels_last=true", "batch.total=128", "batch.micro=64", "loader.workers=7")
"""Beside bf16, which is the default there."""


class Peer(NamedTuple):
    """A loop to compare with: its program, whether it needs the peers' environment, and our bar beside it."""

    module: str
    foreign: bool
    bar: str
    meets: Callable[[float], bool]


PEERS = {
    "hand-written": Peer("handwritten", False, ">= 0.98", lambda r: r >= 0.98),
    "timm": Peer("with_timm", False, "> 1.0", lambda r: r > 1),
    "accelerate": Peer("with_accelerate", True, "> 1.0", lambda r: r > 1),
    "lightning": Peer("with_lightning", True, "> 1.0", lambda r: r > 1),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="what to train; default: a timm network on synthetic pictures")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the recipe")
    on_gpu = bool(hardware.cuda_devices())
    model, image = ("resnet50", 512) if on_gpu else ("resnet18", 96)
    parser.add_argument("--model", default=model, help="timm network (without RECIPE; default: %(default)s)")
    help_ = "pixels of a picture's side, cropped to 7/8 of it on a GPU, to 5/6 elsewhere (default: %(default)s)"
    parser.add_argument("--image", type=int, default=image, help=help_)
    parser.add_argument("--processes", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed optimizer steps a window (default: 3)")
    parser.add_argument("--settle", type=int, default=1, help="untimed steps before them (default: 1)")
    parser.add_argument("--rounds", type=int, default=41, help="windows each loop gets (default: 41)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no round after so many (default: do)")
    parser.add_argument("--no-peers", action="store_true", help="only the hand-written loop and timm's")
    return parser.parse_args(argv)


def plan_run(args: argparse.Namespace, folder: Path) -> RunFile:
    """Plan the run that all loops train; makes its pictures if no recipe is given.

    Raises:
        UserError: the recipe cannot be run, or the peers cannot do what it asks for.
    """
    world, changes = World(nodes=1, gpus=args.processes), list(args.set)
    if not args.recipe:
        crop = args.image * 7 // 8 if hardware.cuda_devices() else args.image * 5 // 6
        if hardware.cuda_devices():
            changes = [*GPU, *changes]
        changes = [f"model.name={args.model}", f"data.resize={args.image}", f"data.crop={crop}", *changes]
        changes = [f"data.root={folder / 'pictures'}", *changes]
        write_folder(folder / "pictures", train=PICTURES, side=args.image)
    run, _ = prepare(args.recipe or str(SYNTHETIC), [*NEVER, *changes], world)
    recipe = run.recipe
    if recipe.ema or recipe.mixup or recipe.clip_norm is not None or recipe.compile or recipe.checkpointing:
        raise RecipeError(
            "ema, mixup, clip_norm, compile and checkpointing: the peers have none; --set clip_norm=null, ..."
        )
    if run.plan.micro_batches % world.size:
        raise RecipeError(f"{run.plan.micro_batches} micro-batches: not the same number for {world.size} ranks")
    return run


def command(run: RunFile, folder: Path, name: str, address: str) -> list[str]:
    """Return the command line of one loop: torchrun, then the loop's program."""
    foreign = name in PEERS and PEERS[name].foreign
    python = str(peers.python()) if foreign else sys.executable
    module = PEERS[name].module if name in PEERS else name
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.world.gpus}"]
    program = ["-m", f"benchmarks.loops.{module}"]
    return [*torchrun, *program, store_url(folder), run.name, str(folder / name), address]


def store_url(folder: Path) -> str:
    """Return where the run's record is."""
    return str(folder / "store")


def environment(processes: int) -> dict[str, str]:
    """Return the environment of every loop: what the launcher gives its workers, and this project's folder."""
    threads = max(1, hardware.cpu_count() // processes)
    ours = engine.agent_env(threads=threads, devices=None, address="127.0.0.1", bits=False)
    return {**os.environ, **ours, "PYTHONPATH": str(peers.ROOT)}


def measure(args: argparse.Namespace, folder: Path) -> tuple[RunFile, dict[str, list[turns.Measure]]]:
    """Run all loops and return what their windows took.

    Raises:
        UserError, LoopDied
    """
    run = plan_run(args, folder)
    register(run, open_store(store_url(folder)))
    names = ["ours", *(n for n, p in PEERS.items() if not (p.foreign and args.no_peers))]
    for name in names:
        (folder / name).mkdir()
    commands = {name: partial(command, run, folder, name) for name in names}
    try:
        with turns.running(commands, environment(args.processes), peers.ROOT, folder, args.processes) as loops:
            turns.alternate(loops, 1, settle=WARMUP_STEPS, timed=1)
            told = _progress(args.rounds)
            found = turns.alternate(
                loops, args.rounds, settle=args.settle, timed=args.steps, told=told, seconds=args.seconds
            )
    finally:
        forget(memory_folder(run.name, folder / "ours", run.identity))
    return run, found


def report(run: RunFile, found: Mapping[str, list[turns.Measure]], steps: int) -> str:
    """Lay out the table: `found` is each loop's windows, `steps` how many optimizer steps each of them timed."""
    ours = [m.wall_s for m in found["ours"]]
    rows = []
    for name, windows in found.items():
        wall = [m.wall_s for m in windows]
        speed = spread([steps * run.plan.total / s for s in wall])
        cpu = spread([m.cpu_s / steps * 1e3 for m in windows])
        row = [name, f"{speed.median:.1f}", f"{speed.low:.1f} to {speed.high:.1f}"]
        row += [f"{spread(wall).median / steps * 1e3:.1f}", f"{cpu.median:.1f}"]
        rows.append([*row, *_verdict(name, ratios(wall, ours))])
    headers = [
        "loop",
        "images/s",
        "quartiles",
        "ms a step",
        "CPU ms a step",
        "ours / it",
        "quartiles",
        "95 %",
        "bar",
        "",
    ]
    return render(headers, rows)


def _verdict(name: str, throughput: list[float]) -> list[str]:
    """Word how our throughput compares with a peer's (ours / its own, a round each)."""
    if name not in PEERS:
        return [""] * 5
    middle, (low, high) = spread(throughput), median_interval(throughput)
    met = "met" if PEERS[name].meets(middle.median) else "missed"
    quartiles, interval = f"{middle.low:.3f} to {middle.high:.3f}", f"{low:.3f} to {high:.3f}"
    return [f"{middle.median:.3f}", quartiles, interval, PEERS[name].bar, met]


def describe(run: RunFile, args: argparse.Namespace, rounds: int) -> str:
    """Say what was run."""
    recipe, plan = run.recipe, run.plan
    return (
        f"{recipe.model.name}, crop {recipe.data.crop}, precision {recipe.precision}, {args.processes} processes,"
        f" batch {plan.total} in micro-batches of {plan.micro}, {recipe.loader.workers} loader processes a rank;"
        f" {rounds} rounds of {args.steps} timed steps after {args.settle}"
    )


def _progress(rounds: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if sys.stderr.isatty() or done == rounds:
            print(f"\rround {done} of {rounds}", end="\n" if done == rounds else "", file=sys.stderr, flush=True)

    return tell


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 on a mistake of the user's, 1 if a loop died."""
    args = arguments(argv)
    others = "" if args.no_peers else f", {peers.versions(peers.python())}"
    header = conditions(("torch", "timm")) + others
    try:
        with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
            run, found = measure(args, Path(folder))
    except (FglaunchError, turns.LoopDied) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1 if isinstance(error, turns.LoopDied) else 2
    print(f"{header}\n{describe(run, args, len(found['ours']))}\n\n{report(run, found, args.steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
