"""What it costs to resume far into the data: from opening the loader at a sample cursor to its first batch. One table.

    python -m benchmarks.resume_cost [--rounds N]

The index is synthetic, two million samples long (digits by many names); the loader is the one that trains. Bar:
flat, whatever the cursor. The limit that it is compared with is the cursor at 10^2 in the same round.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.spread import median_interval, ratios, spread
from benchmarks.table import conditions, render
from fgtrain import loader
from fgtrain.data import Sample
from fgtrain.data.digits import Digits
from fgtrain.plan import Plan, make_plan
from fgtrain.recipe import Recipe
from launcher.recipe_file import load

SAMPLES = 2_000_000
CURSORS = (10**2, 10**4, 10**6)


def first_batch_s(recipe: Recipe, plan: Plan, samples: tuple[Sample, ...], cursor: int) -> float:
    """Return the seconds from nothing to the first micro-batch at a sample cursor."""
    started = time.perf_counter()
    batches = loader.training_batches(recipe, plan, samples, start=cursor // plan.total, rank=0, size=1, gpu=False)
    batch = next(batches)
    took = time.perf_counter() - started
    assert len(batch.ids) == plan.micro
    return took


def main() -> None:
    """Measure every cursor in turn, round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    args = parser.parse_args()
    data = Digits()
    train = data.index().train
    samples = (train * (SAMPLES // len(train) + 1))[:SAMPLES]
    recipe: Recipe = load("recipes/quickstart.py", ["batch.total=20", "batch.micro=20", "loader.workers=0"])
    plan = make_plan(recipe, SAMPLES)
    took: dict[int, list[float]] = {cursor: [] for cursor in CURSORS}
    for turn in range(args.rounds + 1):
        for cursor in CURSORS if turn % 2 else reversed(CURSORS):
            once = first_batch_s(recipe, plan, samples, cursor)
            if turn:  # the first warms up
                took[cursor].append(once)
    print(conditions())
    rows = []
    for cursor, seconds in took.items():
        ms, ratio = spread([s * 1e3 for s in seconds]), ratios(seconds, took[CURSORS[0]])
        low, high = median_interval(ratio)
        rows.append([f"{cursor:,}", f"{ms.median:.2f} ({ms.low:.2f}-{ms.high:.2f})", f"{spread(ratio).median:.2f}"])
        rows[-1].append(f"{low:.2f}-{high:.2f}")
    print(render(["sample cursor", "first batch, ms", "x cursor 100", "95 %"], rows))


if __name__ == "__main__":
    main()
