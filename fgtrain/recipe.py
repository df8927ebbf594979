"""What to train: a tree of frozen, typed parts with primary values only.

Step counts, gradient accumulation and warm-up lengths are not here: `fgtrain.plan` computes them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fgtrain.data import Data
from fgtrain.models import Model
from fgtrain.parts import Part
from fgtrain.strategies import Strategy
from fgtrain.strategies.ddp import DDP

replace = msgspec.structs.replace


class Batch(Part):
    """The global batch: `total` samples an optimizer step, computed as total / micro micro-batches by all ranks."""

    total: int
    micro: int


class SGD(Part):
    """Stochastic gradient descent with momentum; `lr` is the peak rate for the global batch."""

    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0


class Adam(Part):
    """Adam; `weight_decay` is added to the gradient (L2)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class AdamW(Part):
    """Adam with decoupled weight decay."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01


class Constant(Part):
    """The peak rate throughout, after a linear warm-up of `warmup_epochs`."""

    warmup_epochs: float = 0.0


class Cosine(Part):
    """Half a cosine from the peak rate to `final` times the peak, after a linear warm-up."""

    warmup_epochs: float = 0.0
    final: float = 0.0


class Step(Part):
    """The rate is multiplied by `gamma` at each of `epochs`, after a linear warm-up."""

    epochs: tuple[float, ...]
    gamma: float = 0.1
    warmup_epochs: float = 0.0


class Ema(Part):
    """Exponential moving average of the weights, updated each step; evaluated and exported instead of the raw ones.

    The decay grows as (1 + n) / (10 + n) with the number of updates n until it reaches `decay`.
    """

    decay: float = 0.9999


class Mixup(Part):
    """Each picture of a micro-batch is blended with another of it, and so are their labels.

    The share of the first is drawn from Beta(alpha, alpha), by step and micro-batch, on the device.
    """

    alpha: float = 0.2


class Loader(Part):
    """Loader processes a rank, micro-batches each of them prepares ahead, and a cache. None of them changes the data.

    With a `cache`, pictures are decoded and scaled once and read from there (docs/data.md): from this machine's disk,
    or by way of the store, from which other machines then take them.
    """

    workers: int = 2
    prefetch: int = 2
    cache: Literal["off", "disk", "store"] = "off"


class Evaluate(Part):
    """Evaluation on the held-out split, every so many epochs and after the last one."""

    every_epochs: float = 1.0
    micro: int = 64


class Snapshots(Part):
    """When to take a snapshot, and where to keep it.

    In the store: every `steps` optimizer steps, every `seconds`, or, with neither, at an interval worked out from what
    snapshots cost and how often the run is interrupted (`auto`; false: only at the end). In host memory: every
    `memory_steps` optimizer steps (None: worked out likewise, for at most 2 % of the time; 0: never), with a copy on
    another node if `copies`. Each rank's arena holds `slots` shares; when it is full, snapshots are skipped.
    `fail_after` snapshots in a row that fail end the run (None: none do).
    """

    steps: int | None = None
    seconds: float | None = None
    auto: bool = True
    memory_steps: int | None = None
    copies: bool = True
    slots: int = 4
    fail_after: int | None = None


class Recipe(Part):
    """A training run, described whole.

    `determinism` is what is the same at any world size and after any number of restarts: with "samples", which samples
    each step sees, and how they look; with "bits" also every bit of the weights, on one kind of device.

    `precision`: "auto" is bf16 on GPUs that have it, and fp32 elsewhere. `checkpointing` computes the insides of a
    network's blocks anew in the backward pass, instead of keeping them: less memory, about a third more work.
    `compile` has torch.compile make kernels for the network: minutes at first, and where shapes change.
    `mixup` blends pairs of training pictures.
    """

    model: Model
    data: Data
    optim: SGD | Adam | AdamW
    batch: Batch
    epochs: float
    schedule: Constant | Cosine | Step = Constant()
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: Ema | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = False
    checkpointing: bool = False
    compile: bool = False
    mixup: Mixup | None = None
    determinism: Literal["samples", "bits"] = "samples"
    strategy: Strategy = DDP()
    seed: int = 0
    loader: Loader = Loader()
    evaluate: Evaluate = Evaluate()
    snapshots: Snapshots = Snapshots()
