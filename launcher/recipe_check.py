"""Values of a recipe that have the right type and make no sense. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

from fgtrain.parts import leaves
from fgtrain.pictures import PictureFiles
from fgtrain.recipe import SGD, Recipe


class Rule(NamedTuple):
    """What a value must be; of a list, each element."""

    holds: Callable[[Any], bool]
    words: str


ABOVE_0 = Rule(lambda v: v > 0, "above 0")
FROM_0 = Rule(lambda v: v >= 0, "0 or more")
FROM_2 = Rule(lambda v: v >= 2, "2 or more: one is kept while another fills")
BELOW_1 = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
SHARE = Rule(lambda v: 0 < v <= 1, "in (0, 1]")
NAMED = Rule(lambda v: v.strip() != "", "not empty")

RULES = MappingProxyType(
    {
        "model.name": NAMED,
        "model.classes": ABOVE_0,
        "model.drop": BELOW_1,
        "model.drop_path": BELOW_1,
        "data.resize": ABOVE_0,
        "data.crop": ABOVE_0,
        "data.scale": SHARE,
        "data.shrink": ABOVE_0,
        "data.std": ABOVE_0,
        "optim.lr": ABOVE_0,
        "optim.momentum": BELOW_1,
        "optim.betas": BELOW_1,
        "optim.eps": ABOVE_0,
        "optim.weight_decay": FROM_0,
        "batch.total": ABOVE_0,
        "batch.micro": ABOVE_0,
        "epochs": ABOVE_0,
        "schedule.warmup_epochs": FROM_0,
        "schedule.final": FROM_0,
        "schedule.epochs": FROM_0,
        "schedule.gamma": ABOVE_0,
        "label_smoothing": BELOW_1,
        "clip_norm": ABOVE_0,
        "ema.decay": BELOW_1,
        "mixup.alpha": ABOVE_0,
        "loader.workers": FROM_0,
        "loader.prefetch": ABOVE_0,
        "evaluate.every_epochs": FROM_0,
        "evaluate.micro": ABOVE_0,
        "snapshots.steps": ABOVE_0,
        "snapshots.seconds": FROM_0,
        "snapshots.memory_steps": FROM_0,
        "snapshots.slots": FROM_2,
        "snapshots.fail_after": ABOVE_0,
    }
)


def flaws(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with a recipe, each as `field=value: what it must be`."""
    for path, value in leaves(recipe):
        items = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            yield f"{path}={_spell(value)}: it must be a finite number"
        elif path in RULES and value is not None and not all(map(RULES[path].holds, items)):
            yield f"{path}={_spell(value)}: it must be {RULES[path].words}"
    yield from _contradictions(recipe)


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield values that do not go together."""
    data, scale = recipe.data, getattr(recipe.data, "scale", None)
    if data.crop > data.resize:
        yield f"data.crop={data.crop} is larger than data.resize={data.resize}"
    if scale and scale[0] > scale[1]:
        yield f"data.scale={_spell(scale)}: the first must not be above the second"
    if recipe.compile and recipe.determinism == "bits":
        yield "compile=true: nobody vouches for the bits of compiled kernels; --set determinism=samples"
    shrink = getattr(recipe.data, "shrink", None)
    if shrink is not None and not scale:
        yield f"data.shrink={shrink}: it is for random shares of the picture; set data.scale, or unset data.shrink=null"
    if shrink is not None and data.crop > shrink:
        yield f"data.crop={data.crop} is larger than data.shrink={shrink}"
    if recipe.loader.cache != "off" and not isinstance(data, PictureFiles):
        kind = type(data).__name__
        yield f"loader.cache={recipe.loader.cache}: {kind} reads no picture files; --set loader.cache=off"
    if isinstance(recipe.optim, SGD) and recipe.optim.nesterov and not recipe.optim.momentum:
        yield "optim.nesterov=true: it needs optim.momentum above 0"
    yield from recipe.strategy.flaws(recipe)


def _spell(value: Any) -> str:
    """Write a value as `--set` reads it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
