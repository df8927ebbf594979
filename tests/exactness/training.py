"""Training without a store or a launcher: some steps on made-up pictures, in a given world, and what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fgtrain import loader
from fgtrain.bits import assert_equal, settle_kernels
from fgtrain.build import build_state
from fgtrain.data import BadImage
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.fit import reckon, search
from fgtrain.fitting import Fitted
from fgtrain.freeze import train_mode
from fgtrain.ladder import Ladder, Shortage
from fgtrain.loader import MicroBatch
from fgtrain.memory import estimate
from fgtrain.models import Model
from fgtrain.models.timm import Timm
from fgtrain.parts import Part
from fgtrain.place import Place
from fgtrain.plan import Plan, make_plan, share
from fgtrain.recipe import SGD, AdamW, Batch, Ema, Loader, Recipe, replace
from fgtrain.singles import refuses
from fgtrain.sizes import measure
from fgtrain.step import Stepper, Wishes

CLASSES = 3
SAMPLES = 29
"""Two epochs are 58 samples: four steps of six micro-batches of two, and one of five."""

_PICTURES = ImageFolder(root="made up", resize=36, crop=32, on_bad_image="skip")
RESNET = Recipe(
    model=Timm(name="test_resnet", classes=CLASSES, drop=0.1),
    data=_PICTURES,
    optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
    batch=Batch(total=12, micro=2),
    epochs=2,
    determinism="bits",
    loader=Loader(workers=0),
)
VIT = replace(
    RESNET,
    model=Timm(name="test_vit", classes=CLASSES, drop=0.2, drop_path=0.2),
    data=replace(_PICTURES, resize=160, crop=160),
    optim=AdamW(lr=1e-3),
    ema=Ema(decay=0.9),
    clip_norm=0.5,
    label_smoothing=0.1,
)


class Outcome(NamedTuple):
    """What a training left on one rank."""

    digest: str
    losses: list[float]
    scale: float
    unused: list[str]
    shortages: list[Shortage]


class Oddities(Part, Model):
    """A small network with what is rarely met: branches without a gradient at times, a frozen part, a tied one."""

    classes: int = CLASSES

    def build(self) -> nn.Module:
        return _Odd(self.classes)


class _Odd(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.sometimes = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.body(x)).relu().mean((2, 3))
        if torch.rand(()) < 0.5:  # keyed by micro-batch
            x = self.sometimes(x)
        return self.head(self.frozen(x))


class Hungry(Part, Model):
    """A ResNet of timm's on a device that runs out of memory above `limit` samples, from a step on, on some rank.

    `where`: on the way forward, or half-way back.
    """

    name: str = "test_resnet"
    classes: int = CLASSES
    limit: int = 2
    from_step: int = 0
    rank: int = 0
    where: str = "forward"

    def build(self) -> nn.Module:
        return _Hungry(Timm(name=self.name, classes=self.classes, drop=0.1).build(), self)


class _Hungry(nn.Module):
    step = 0  # that is being taken

    def __init__(self, net: nn.Module, device: Hungry) -> None:
        super().__init__()
        self.net, self.device = net, device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rank = dist.get_rank() if dist.is_initialized() else 0
        full = self.training and len(x) > self.device.limit and self.step >= self.device.from_step
        if not full or rank != self.device.rank:
            return self.net(x)
        if self.device.where == "forward":
            self.net(x)  # statistics have moved by then
            run_out()
        y = self.net.layer2(self.net.layer1(self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(x))))))
        y.register_hook(run_out)
        return self.net.get_classifier()(self.net.forward_head(self.net.layer4(self.net.layer3(y)), pre_logits=True))


def run_out(*_: Any) -> None:
    """Be a device without memory."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (simulated)")


class Forgetful(Part, Model):
    """A network that counts in a buffer of its own."""

    classes: int = CLASSES

    def build(self) -> nn.Module:
        return _Forgetful(self.classes)


class _Forgetful(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.head(x.mean((2, 3)))


def assert_ranks_differ(place: Place) -> str:
    """Give the ranks different weights in one layer and return what the check says."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    assert_equal(net, place)
    with torch.no_grad():
        net[1].weight += place.rank
    try:
        assert_equal(net, place)
    except AssertionError as error:
        return str(error)
    return ""


def made_up(
    recipe: Recipe, plan: Plan, place: Place, start: int, bad: frozenset[tuple[int, int]]
) -> Iterator[MicroBatch]:
    """Yield a rank's micro-batches: noise, keyed by sample. Nothing can be read of those in `bad`."""
    order = loader.Order(plan.samples, recipe.seed)
    side = recipe.data.crop  # type: ignore[attr-defined]
    for step in range(start, plan.steps):
        for micro in share(plan.micro_batches, place.rank, place.size):
            ids = [] if (step, micro) in bad else [order[p] for p in plan.batch(step, micro)]
            shape = (side, side, 3)
            draws = [torch.Generator().manual_seed(sample) for _, sample in ids]
            images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=d) for d in draws]
            labels = np.array([sample % CLASSES for _, sample in ids], dtype=np.int64)
            stacked = torch.stack(images) if images else torch.zeros(0, *shape, dtype=torch.uint8)
            yield MicroBatch(stacked, labels, ids, [BadImage("made up", "bad")] * ((step, micro) in bad))


def expected_ids(
    recipe: Recipe, plan: Plan, place: Place, step: int, bad: frozenset[tuple[int, int]]
) -> list[tuple[int, list[tuple[int, int]]]]:
    """What a rank must say that it saw in a step: the samples of its micro-batches, each once."""
    order = loader.Order(plan.samples, recipe.seed)
    mine = share(plan.micro_batches, place.rank, place.size)
    return [(m, [] if (step, m) in bad else [order[p] for p in plan.batch(step, m)]) for m in mine]


def train(
    place: Place,
    recipe: Recipe,
    *,
    threads: int = 1,
    bad: frozenset[tuple[int, int]] = frozenset(),
    scale: float | None = None,
    fitted: Fitted | None = None,
) -> Outcome:
    """Train a recipe to its end and return what is left."""
    torch.set_num_threads(threads)
    if recipe.determinism == "bits":
        settle_kernels()
    plan = make_plan(recipe, SAMPLES)
    state = build_state(recipe, place.device)
    if scale is not None:
        state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale})
    told: list[Shortage] = []
    ladder = Ladder(plan, fitted, tell=told.append, refuses=lambda: refuses(recipe))
    stepper = Stepper(recipe, plan, place, state, ladder=ladder)
    batches = made_up(recipe, plan, place, 0, bad)
    losses = []
    for _Hungry.step in range(plan.steps):
        report = stepper.step(batches, Wishes(), lambda: None)
        losses.append(report.loss)
        assert report.ids == expected_ids(recipe, plan, place, _Hungry.step, bad)
    train_mode(state.net)
    values = {k: v for k, v in state.values().items() if k != "bad_images"}
    unused = [n for n, p in state.net.named_parameters() if p not in state.optimizer.state and p.requires_grad]
    return Outcome(digest(state.tensors(), values), losses, state.scaler.get_scale(), unused, told)


def fitting(place: Place, recipe: Recipe) -> int:
    """Return the micro-batch that `--fit` finds; the state must be as it was."""
    torch.set_num_threads(1)
    state = build_state(recipe, place.device)
    before = digest(state.tensors(), state.values())
    found = search(recipe, make_plan(recipe, SAMPLES), place.size, place, state)
    assert digest(state.tensors(), state.values()) == before
    assert all(p.grad is None for p in state.net.parameters())
    return found


def reckoning(place: Place, recipe: Recipe, micro: int) -> int:
    """Return what `--fit` reckons where rank 1 has just the memory for micro-batches of `micro`, and others more."""
    smaller = replace(recipe, batch=replace(recipe.batch, micro=micro))
    room = round(1.16 * estimate(measure(smaller), smaller, place.size).total)
    return reckon(recipe, make_plan(recipe, SAMPLES), place.size, place, room if place.rank == 1 else 10 * room)


def digest(tensors: dict[str, dict[str, torch.Tensor]], values: Any) -> str:
    """Return a hash over every bit of a state."""
    total = hashlib.sha256(msgspec.json.encode(values, order="deterministic"))
    for group in tensors.values():
        for name, tensor in group.items():
            total.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
