"""Plan: recipe x data x world, by pure arithmetic.

The samples of a run form one stream of positions: epoch 0 in its keyed order, then epoch 1, and so on. Step s takes
positions [s * total, (s + 1) * total); its micro-batch g takes `micro` of them. Steps run across epoch boundaries, so
every step but the run's last is full and every epoch is seen exactly once. Nothing here depends on the world size
except who computes which micro-batches.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from fgtrain.errors import RecipeError, UserError
from fgtrain.recipe import Constant, Cosine, Recipe, Step

DETECT_S = 3.0
"""How long an agent may be silent on a network of its own before it counts as lost."""

MIN_DETECT_S = 0.5

Engine = Literal["torchrun", "deepspeed"]
"""What starts the workers of a node."""


class World(msgspec.Struct, frozen=True):
    """`nodes` machines with `gpus` processes each (one a GPU; CPU processes where there is none).

    With `max_nodes` the world may have any number of nodes from `nodes` to `max_nodes`. `spares` more agents are
    started and wait to step in. A node that is silent for `detect_s` seconds counts as lost. `engine` starts a node's
    workers.
    """

    nodes: int
    gpus: int
    max_nodes: int | None = None
    spares: int = 0
    detect_s: float = DETECT_S
    engine: Engine = "torchrun"

    @property
    def most(self) -> int:
        """The largest number of nodes that take part at a time."""
        return self.nodes if self.max_nodes is None else self.max_nodes

    @property
    def started(self) -> int:
        """Number of nodes that agents are started on."""
        return self.most + self.spares

    @property
    def size(self) -> int:
        """Number of ranks, when all nodes are there."""
        return self.most * self.gpus

    @property
    def span(self) -> str:
        """The nodes as `--nodes` takes them: N or MIN:MAX."""
        return str(self.nodes) if self.max_nodes is None else f"{self.nodes}:{self.max_nodes}"


def parse_nodes(text: str) -> tuple[int, int | None]:
    """Read `--nodes N` or `--nodes MIN:MAX`; returns the fewest, and the most if they may differ.

    Raises:
        UserError: it is neither.
    """
    least, colon, most = text.partition(":")
    try:
        nodes = int(least), int(most) if colon else None
    except ValueError:
        raise UserError(f"--nodes {text}: a number of nodes (2), or the fewest and the most (2:8)") from None
    if nodes[1] is not None and nodes[1] < nodes[0]:
        raise UserError(f"--nodes {text}: the fewest come first: --nodes {nodes[1]}:{nodes[0]}")
    return nodes


def chosen_world(
    world: World,
    nodes: str | None,
    gpus: int | None,
    spares: int | None,
    detect_s: float | None,
    engine: Engine | None = None,
) -> World:
    """Return a world with what was said otherwise on the command line.

    Raises:
        UserError: `nodes` makes no sense; the rest is looked at by `check_world`.
    """
    least, most = (world.nodes, world.max_nodes) if nodes is None else parse_nodes(nodes)
    return World(
        least,
        world.gpus if gpus is None else gpus,
        most,
        world.spares if spares is None else spares,
        world.detect_s if detect_s is None else detect_s,
        world.engine if engine is None else engine,
    )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe comes to on one data set. All lengths in samples or optimizer steps, as named.

    `evaluate_every` is in steps, not rounded; 0: only after the last.
    """

    samples: int
    positions: int
    total: int
    micro: int
    micro_batches: int
    steps: int
    warmup_steps: int
    evaluate_every: float

    def epoch_at(self, step: int) -> float:
        """Return how many epochs have been seen after `step` steps."""
        return min(step * self.total, self.positions) / self.samples

    def batch(self, step: int, micro_batch: int) -> range:
        """Return the positions of one micro-batch; shorter, or empty, only in the run's last step."""
        start = step * self.total + micro_batch * self.micro
        return range(min(start, self.positions), min(start + self.micro, self.positions))

    def evaluates_after(self, step: int) -> bool:
        """Tell whether `step` steps are the first at or past a multiple of `evaluate_every`, or all there are."""
        if step == self.steps or step < 1 or not self.evaluate_every:
            return step == self.steps
        every = max(self.evaluate_every, 1.0)
        near = int(step / every)
        return any(math.ceil(n * every) == step for n in (near, near + 1) if n)

    def batch_samples(self, step: int) -> int:
        """Return how many samples a step sees: `total`, except in the last."""
        return min((step + 1) * self.total, self.positions) - step * self.total


def make_plan(recipe: Recipe, samples: int) -> Plan:
    """Work out the plan of a recipe on `samples` training samples.

    Raises:
        RecipeError: a batch that is not a whole number of micro-batches, or a run without a single step.
    """
    total, micro = recipe.batch.total, recipe.batch.micro
    if micro < 1 or total < 1 or total % micro:
        raise RecipeError(
            f"batch.total={total} is not a whole number of micro-batches of batch.micro={micro}:"
            f" --set batch.total={max(1, round(total / max(micro, 1))) * max(micro, 1)}, for example"
        )
    positions = round(recipe.epochs * samples)
    if positions < 1:
        raise RecipeError(f"epochs={recipe.epochs} of {samples} samples is no training: raise epochs")
    steps = math.ceil(positions / total)
    return Plan(
        samples=samples,
        positions=positions,
        total=total,
        micro=micro,
        micro_batches=total // micro,
        steps=steps,
        warmup_steps=round(recipe.schedule.warmup_epochs * samples / total),
        evaluate_every=recipe.evaluate.every_epochs * samples / total,
    )


def check_world(plan: Plan, world: World) -> None:
    """Refuse a world that cannot share the global batch.

    Raises:
        RecipeError: fewer micro-batches than ranks, no ranks at all, or another number out of range.
    """
    if world.nodes < 1 or world.gpus < 1:
        raise RecipeError(f"--nodes {world.span} --gpus {world.gpus}: both must be 1 or more")
    if world.spares < 0:
        raise RecipeError(f"--spares {world.spares}: must be 0 or more")
    if not world.detect_s >= MIN_DETECT_S:
        raise RecipeError(f"--detect {world.detect_s:g}: must be {MIN_DETECT_S:g} seconds or more")
    if world.size > plan.micro_batches:
        fits = (
            max(d for d in range(1, plan.total // world.size + 1) if plan.total % d == 0)
            if (plan.total >= world.size)
            else 0
        )
        fix = f"--set batch.micro={fits}" if fits else f"--set batch.total={world.size * plan.micro}"
        raise RecipeError(
            f"batch.total={plan.total} in micro-batches of {plan.micro} makes {plan.micro_batches},"
            f" which {world.size} processes cannot share: {fix}, or ask for fewer nodes or GPUs"
        )


def share(micro_batches: int, rank: int, size: int) -> range:
    """Return the micro-batches of a global batch that a rank computes: contiguous, even to within one."""
    return range(micro_batches * rank // size, micro_batches * (rank + 1) // size)


def rate(recipe: Recipe, plan: Plan, step: int) -> float:
    """Return the learning rate of a step (0-based): linear warm-up, then the schedule."""
    schedule, warmup = recipe.schedule, plan.warmup_steps
    if step < warmup:
        return recipe.optim.lr * (step + 1) / warmup
    match schedule:
        case Constant():
            factor = 1.0
        case Cosine(final=final):
            progress = (step - warmup) / max(1, plan.steps - warmup)
            factor = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case Step(epochs=epochs, gamma=gamma):
            factor = gamma ** sum(step >= round(e * plan.samples / plan.total) for e in epochs)
    return recipe.optim.lr * factor
