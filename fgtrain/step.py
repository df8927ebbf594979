"""One optimizer step: this rank's micro-batches, the gradients of all ranks, one update.

The loss of a step is the mean over its samples, whoever computes them. Ranks differ in how many micro-batches they
have; each scales its sums so that the mean over ranks, which DDP computes, is the mean over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fgtrain.batchnorm import RunningStatistics
from fgtrain.data import BadImage
from fgtrain.freeze import train_mode
from fgtrain.keyed import key
from fgtrain.loader import MicroBatch, checked
from fgtrain.optimizer import autocast
from fgtrain.place import Place, agree
from fgtrain.plan import Plan, rate, share
from fgtrain.recipe import Recipe
from fgtrain.state import State
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

    def __init__(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> None:
        self._recipe, self._plan, self._place, self._state = recipe, plan, place, state
        self._mine = share(plan.micro_batches, place.rank, place.size)
        self._norms = RunningStatistics(state.net)
        self._ddp: DistributedDataParallel | None = None
        if place.size > 1:
            self._ddp = DistributedDataParallel(
                state.net,
                device_ids=[place.local_rank] if place.device.type == "cuda" else None,
                broadcast_buffers=False,  # RunningStatistics agrees on them once a step
                gradient_as_bucket_view=True,
            )
        train_mode(state.net)

    def step(self, batches: Iterator[MicroBatch], wishes: Wishes, before_update: Callable[[], None]) -> StepReport:
        """Take one step.

        Args:
            batches: this rank's micro-batches.
            wishes: this rank's; the report has those of all ranks.
            before_update: called when the state is about to change.
        """
        state, plan = self._state, self._plan
        state.optimizer.zero_grad(set_to_none=True)
        self._norms.begin_step()
        loss_sum = torch.zeros((), device=self._place.device)
        ids, bad, seen = [], [], 0
        for micro_batch in self._mine:
            batch = checked(next(batches), self._recipe)
            loss_sum += self._backward(batch, micro_batch)
            ids.append((micro_batch, batch.ids))
            bad += batch.bad
            seen += len(batch.ids)
        flags = torch.tensor([seen, *wishes], dtype=torch.float32, device=self._place.device)
        mail = agree(torch.cat([loss_sum[None], flags, self._norms.flat_sum().to(self._place.device)]))
        loss, samples, *votes = mail[: 2 + len(wishes)].tolist()
        filled = sum(len(plan.batch(state.step, g)) > 0 for g in range(plan.micro_batches))
        before_update()
        self._norms.end_step(mail[2 + len(wishes) :], filled)
        lr = self._update()
        return StepReport(loss / max(samples, 1), lr, int(samples), Wishes(*(v > 0 for v in votes)), ids, bad)

    def _backward(self, batch: MicroBatch, micro_batch: int) -> torch.Tensor:
        """Add one micro-batch's gradients and return the sum of its losses.

        A micro-batch without samples (the run's last step, or all its pictures bad) still runs a stand-in, so that
        every rank takes part in the exchange of gradients.
        """
        torch.manual_seed(key("dropout", self._recipe.seed, self._state.step, micro_batch))
        last = micro_batch == self._mine[-1]
        net = self._ddp or self._state.net
        empty = not len(batch.ids)
        images = torch.zeros(2, *batch.images.shape[1:], dtype=torch.uint8) if empty else batch.images
        with nullcontext() if last or self._ddp is None else self._ddp.no_sync():
            with autocast(self._recipe, self._place.device):
                logits_NC = net(to_input(images, self._recipe, self._place.device))
            if empty:
                loss = logits_NC.float().sum() * 0
            else:
                loss = F.cross_entropy(
                    logits_NC.float(),
                    batch.labels.to(self._place.device, non_blocking=True),
                    reduction="sum",
                    label_smoothing=self._recipe.label_smoothing,
                )
            scale = self._place.size / self._plan.batch_samples(self._state.step)
            self._state.scaler.scale(loss * scale).backward()
        self._norms.end_micro_batch(0.0 if empty else 1.0)
        detached: torch.Tensor = loss.detach()
        return detached

    def _update(self) -> float:
        """Apply the gradients and return the learning rate used."""
        state, recipe = self._state, self._recipe
        lr = rate(recipe, self._plan, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        if recipe.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.net.parameters(), recipe.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            state.ema.update(state.net)
        state.step += 1
        return lr
