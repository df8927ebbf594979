"""One optimizer step: this rank's micro-batches, the gradients of all ranks, one update.

The loss of a step is the mean over its samples, whoever computes them. How the ranks' gradients are summed is the
reduction's affair (`fgtrain.reduction`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fgtrain.data import BadImage
from fgtrain.freeze import train_mode
from fgtrain.keyed import key
from fgtrain.loader import MicroBatch, checked
from fgtrain.optimizer import autocast
from fgtrain.place import Place
from fgtrain.plan import Plan, rate, share
from fgtrain.pulse import Pulse, Stage
from fgtrain.recipe import Recipe
from fgtrain.state import State
from fgtrain.stopwatch import make_stopwatch
from fgtrain.tensors import to_input


class Wishes(NamedTuple):
    """What a rank wants after this step.

    To stop; to save a snapshot in the store; to keep one in host memory; neither, because it has no room (`full`).
    """

    stop: bool = False
    save: bool = False
    keep: bool = False
    full: bool = False


class StepReport(NamedTuple):
    """What all ranks know after a step. `wishes` are those that some rank had. `ids` and `bad` are this rank's."""

    loss: float
    rate: float
    samples: int
    wishes: Wishes
    ids: list[tuple[int, list[tuple[int, int]]]]
    bad: list[BadImage]


class Stepper:
    """Takes optimizer steps on a state."""

    def __init__(self, recipe: Recipe, plan: Plan, place: Place, state: State, pulse: Pulse | None = None) -> None:
        self._recipe, self._plan, self._place, self._state = recipe, plan, place, state
        self._pulse = pulse or Pulse()
        self._stopwatch = make_stopwatch(place.device)
        self._mine = share(plan.micro_batches, place.rank, place.size)
        self._reduction = recipe.strategy.reduction(recipe, plan, place, state)
        most = -(-plan.micro_batches // place.size)
        self._idle = most - len(self._mine) if state.lockstep else 0  # passes beyond this rank's share
        train_mode(state.net)

    def step(self, batches: Iterator[MicroBatch], wishes: Wishes, before_update: Callable[[], None]) -> StepReport:
        """Take one step.

        Args:
            batches: this rank's micro-batches.
            wishes: this rank's; the report has those of all ranks.
            before_update: called when the state is about to change.
        """
        state, reduction, pulse = self._state, self._reduction, self._pulse
        pulse.worked(self._stopwatch.seconds() / work(len(self._mine)))  # of the last step: a device tells late
        pulse.step_begins(state.step)
        self._stopwatch.start()
        reduction.begin_step()
        losses_G = torch.zeros(self._plan.micro_batches, device=self._place.device)  # the others' rows stay zero
        ids, bad, seen = [], [], 0
        for micro_batch in self._mine:
            pulse.stage(Stage.LOAD)
            batch = checked(next(batches), self._recipe)
            pulse.stage(Stage.COMPUTE)
            losses_G[micro_batch] = self._backward(batch, micro_batch)
            ids.append((micro_batch, batch.ids))
            bad += batch.bad
            seen += len(batch.ids)
        for _ in range(self._idle):
            self._keep_step(batch)
        flags = torch.tensor([seen, *wishes], dtype=torch.float32, device=self._place.device)
        reduction.exchange(torch.cat([flags, losses_G]))
        pulse.stage(Stage.UPDATE)
        before_update()
        lr = self._update()
        mail = reduction.end_step().tolist()  # it travelled while the optimizer worked
        if state.ema:
            state.ema.update(state.net)
        state.step += 1
        samples, votes, losses = mail[0], mail[1 : 1 + len(wishes)], mail[1 + len(wishes) :]
        loss = sum(losses) / max(samples, 1)
        return StepReport(loss, lr, int(samples), Wishes(*(v > 0 for v in votes)), ids, bad)

    def _backward(self, batch: MicroBatch, micro_batch: int) -> torch.Tensor:
        """Add one micro-batch's gradients and return the sum of its losses."""
        _seed(key("dropout", self._recipe.seed, self._state.step, micro_batch), self._place.device)
        filled = len(batch.ids) > 0
        with self._reduction.micro_batch(micro_batch, filled=filled):
            if not filled and not self._reduction.collective:
                return torch.zeros(())
            loss = self._loss(batch) if filled else self._stand_in(batch)
            scale = self._reduction.loss_scale / self._plan.batch_samples(self._state.step)
            if micro_batch == self._mine[-1]:  # its backward pass waits for the other ranks
                self._stopwatch.stop()
                self._pulse.stage(Stage.EXCHANGE)
            self._reduction.backward(loss * scale)
        detached: torch.Tensor = loss.detach()
        return detached

    def _keep_step(self, like: MicroBatch) -> None:
        """Run a pass that counts for nothing, because other ranks make one."""
        with self._reduction.micro_batch(None, filled=False):
            self._reduction.backward(self._stand_in(like))

    def _loss(self, batch: MicroBatch) -> torch.Tensor:
        """Run forward and return the sum of the samples' losses."""
        return F.cross_entropy(
            self._logits(batch.images).float(),
            torch.from_numpy(batch.labels).to(self._place.device, non_blocking=True),
            reduction="sum",
            label_smoothing=self._recipe.label_smoothing,
        )

    def _stand_in(self, batch: MicroBatch) -> torch.Tensor:
        """Return a loss of zero for a micro-batch without samples (the run's last step, or all its pictures bad).

        It goes through the network, so that this rank takes part in the exchange of gradients.
        """
        images = torch.zeros(2, *batch.images.shape[1:], dtype=torch.uint8)
        return self._logits(images).float().sum() * 0

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network on pictures, uint8 (N, H, W, 3); returns (N, classes)."""
        with autocast(self._recipe, self._place.device):
            logits_NC: torch.Tensor = self._reduction.net(to_input(images, self._recipe, self._place.device))
        return logits_NC

    def _update(self) -> float:
        """Apply the gradients and return the learning rate used."""
        lr = rate(self._recipe, self._plan, self._state.step)
        self._reduction.update(lr)
        return lr


def work(micro_batches: int) -> int:
    """Return what a rank computes in a step before it meets the others, in forward passes of a micro-batch.

    A backward pass is taken as two, and the last one does not count.
    """
    return max(1, 3 * micro_batches - 2)


def _seed(seed: int, device: torch.device) -> None:
    """Seed what the network may draw from: the CPU's generator and its device's.

    torch.manual_seed goes on to every other kind of device that there might be, and takes as long as a small layer.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
