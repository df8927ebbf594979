"""One optimizer step: this rank's micro-batches, the gradients of all ranks, one update.

The loss of a step is the mean over its samples, whoever computes them. How the ranks' gradients are summed is the
reduction's affair (`fgtrain.reduction`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fgtrain import mixup
from fgtrain.compiled import Patience, compiled
from fgtrain.data import BadImage
from fgtrain.freeze import train_mode
from fgtrain.keyed import key
from fgtrain.ladder import Ladder
from fgtrain.late import Late, late
from fgtrain.loader import MicroBatch, checked, pieces
from fgtrain.oom import is_oom, make_room
from fgtrain.optimizer import autocast
from fgtrain.place import Place, agree
from fgtrain.plan import Plan, rate, share
from fgtrain.profiler import Profiler
from fgtrain.pulse import Phase, Pulse, Stage
from fgtrain.recipe import Recipe
from fgtrain.singles import as_if_frozen, refuses
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

    losses: Late
    rate: float
    samples: int
    wishes: Wishes
    ids: list[tuple[int, list[tuple[int, int]]]]
    bad: list[BadImage]

    @property
    def loss(self) -> float:
        """The mean over the step's samples; waits, if a device is still computing it."""
        return sum(self.losses.values()) / max(self.samples, 1)


class _Words(NamedTuple):
    """What the ranks tell each other before the update: sums over ranks."""

    ran_out: int
    samples: int
    wishes: Wishes


class Stepper:
    """Takes optimizer steps on a state."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        place: Place,
        state: State,
        pulse: Pulse | None = None,
        ladder: Ladder | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self._recipe, self._plan, self._place, self._state = recipe, plan, place, state
        self._pulse = pulse or Pulse()
        self._ladder = ladder or Ladder(plan)
        self._span = (profiler or Profiler()).span
        self._stopwatch = make_stopwatch(place.device)
        self._mine = share(plan.micro_batches, place.rank, place.size)
        self._reduction = recipe.strategy.reduction(recipe, plan, place, state)
        most = -(-plan.micro_batches // place.size)
        self._idle = most - len(self._mine) if state.lockstep else 0  # passes beyond this rank's share
        whole = recipe.compile and not self._reduction.compiled
        self._net = compiled(self._reduction.net) if whole else self._reduction.net
        self._patience = Patience(self._pulse, compiles=recipe.compile)
        self._parts = 1
        train_mode(state.net)

    def step(self, batches: Iterator[MicroBatch], wishes: Wishes, before_update: Callable[[], None]) -> StepReport:
        """Take one step; again, with smaller micro-batches on all ranks, as long as some rank has no memory for it.

        Args:
            batches: this rank's micro-batches.
            wishes: this rank's; the report has those of all ranks.
            before_update: called when the state is about to change.

        Raises:
            MemoryError: a rank has no memory for a single sample, or for as few as the network takes.
        """
        state, pulse = self._state, self._pulse
        pulse.worked(self._stopwatch.seconds() / work(len(self._mine)))  # of the last step: a device tells late
        self._divide()
        held: list[MicroBatch] = []
        while (words := self._gradients(batches, held, wishes)).ran_out:
            self._reduction.drop_step()
            make_room(self._place.device)
            with pulse.meanwhile(Phase.COMPILE):  # what would save memory takes a while to find out
                self._ladder.shrink(state.step, words.ran_out, self._place.size)
            self._divide()
        pulse.stage(Stage.UPDATE)
        with self._span("snapshot"):
            before_update()
        with self._span("optimizer"):
            lr = self._update()
        losses = late(self._reduction.end_step())
        if state.ema:
            state.ema.update(state.net)
        state.step += 1
        ids = [(number, batch.ids) for number, batch in zip(self._mine, held, strict=True)]
        return StepReport(losses, lr, words.samples, words.wishes, ids, [b for batch in held for b in batch.bad])

    def _divide(self) -> None:
        """Cut micro-batches as small as this step wants them."""
        parts = self._ladder.parts(self._state.step)
        if parts != self._parts:
            self._parts = parts
            self._reduction.divide(parts)

    def _gradients(self, batches: Iterator[MicroBatch], held: list[MicroBatch], wishes: Wishes) -> _Words:
        """Compute the gradients of the step, of all ranks, unless one of them ran out of memory.

        Args:
            batches: this rank's micro-batches.
            held: those of them that were taken for this step already; what is taken is added.
            wishes: this rank's.
        """
        state, reduction, pulse = self._state, self._reduction, self._pulse
        pulse.step_begins(state.step)
        self._stopwatch.start()
        reduction.begin_step()
        losses_G = torch.zeros(self._plan.micro_batches * self._parts, device=self._place.device)  # others' stay zero
        fits = True
        for i, number in enumerate(self._mine):
            pulse.stage(Stage.LOAD)
            self._meets(i)
            if i == len(held):
                with self._span("data"):
                    held.append(checked(next(batches), self._recipe))
            pulse.stage(Stage.COMPUTE)
            if not (fits := self._fits(held[i], number, losses_G)):
                make_room(self._place.device)
                reduction.abandon()
                break
        for i in range(self._idle):
            self._meets(len(self._mine) + i)
            for _ in range(self._parts):
                self._keep_step(held[-1])
        self._meets(len(self._mine) + self._idle)
        words = torch.tensor([not fits, sum(len(b.ids) for b in held), *wishes], dtype=torch.float32)
        with self._span("communication"):
            reduction.exchange(losses_G)
            agree(words)  # from host to host: no device is waited for
        ran_out, samples, *votes = words.tolist()
        return _Words(int(ran_out), int(samples), Wishes(*(v > 0 for v in votes)))

    def _meets(self, passes: int) -> None:
        """Where passes involve all ranks, say after how many of the step this rank meets the others next."""
        if self._state.lockstep:
            self._pulse.passes(passes + 1)

    def _fits(self, batch: MicroBatch, number: int, losses_G: torch.Tensor) -> bool:
        """Add a micro-batch's gradients, part by part, and note its losses; False if there was no memory for it."""
        try:
            for part, piece in enumerate(pieces(batch, self._plan.micro // self._parts, self._parts)):
                losses_G[number * self._parts + part] = self._backward(piece, number * self._parts + part)
        except RuntimeError as error:
            if not is_oom(error):
                raise
            if self._state.lockstep:
                raise self._ladder.leave(self._state.step, self._place.size) from error
            return False
        return True

    def _backward(self, batch: MicroBatch, micro_batch: int) -> torch.Tensor:
        """Add one micro-batch's gradients and return the sum of its losses."""
        norms = self._norms(batch)
        _seed(key("dropout", self._recipe.seed, self._state.step, micro_batch), self._place.device)
        filled = len(batch.ids) > 0
        last = micro_batch == self._mine.stop * self._parts - 1  # its backward pass waits for the other ranks
        patience = self._patience.first(len(batch.ids), last)
        with patience, norms, self._reduction.micro_batch(micro_batch, filled=filled):
            if not filled and not self._reduction.collective:
                return torch.zeros(())
            with self._span("forward"):
                loss = self._loss(batch, micro_batch) if filled else self._stand_in(batch)
            scale = self._reduction.loss_scale / self._plan.batch_samples(self._state.step)
            if last:
                self._stopwatch.stop()
                self._pulse.stage(Stage.EXCHANGE)
            with self._span("backward"):
                self._reduction.backward(loss * scale)
        detached: torch.Tensor = loss.detach()
        return detached

    def _norms(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Return what to run a micro-batch in: of a single sample, the statistics are no statistics."""
        return as_if_frozen(self._state.net) if len(batch.ids) == 1 and refuses(self._recipe) else nullcontext()

    def _keep_step(self, like: MicroBatch) -> None:
        """Run a pass that counts for nothing, because other ranks make one."""
        with self._patience.first(None), self._reduction.micro_batch(None, filled=False):
            self._reduction.backward(self._stand_in(like))

    def _loss(self, batch: MicroBatch, micro_batch: int) -> torch.Tensor:
        """Run forward and return the sum of the samples' losses."""
        blend = mixup.drawn(self._recipe, self._state.step, micro_batch)
        logits_NC = self._logits(batch.images, blend, batch.flips).float()
        labels_N = torch.from_numpy(batch.labels).to(self._place.device, non_blocking=True)
        return mixup.loss(logits_NC, labels_N, blend, self._recipe.label_smoothing)

    def _stand_in(self, batch: MicroBatch) -> torch.Tensor:
        """Return a loss of zero for a micro-batch without samples (the run's last step, or all its pictures bad).

        It goes through the network, so that this rank takes part in the exchange of gradients.
        """
        images = torch.zeros(2, *batch.images.shape[1:], dtype=torch.uint8)
        return self._logits(images).float().sum() * 0

    def _logits(
        self, images: torch.Tensor, blend: mixup.Blend | None = None, flips: npt.NDArray[np.bool_] | None = None
    ) -> torch.Tensor:
        """Run the network on pictures, uint8 (N, H, W, 3); returns (N, classes)."""
        x_NCHW = mixup.blended(to_input(images, self._recipe, self._place.device, flips), blend)
        with autocast(self._recipe, self._place.device):
            logits_NC: torch.Tensor = self._net(x_NCHW)
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
