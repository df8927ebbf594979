"""The same training by the loop of timm's train script, as its `train_one_epoch` has it, with timm's own parts.

That script is no part of timm's package, so the loop is written down here: what it does for each micro-batch and each
update, in its order, with its defaults, the loss read every micro-batch; no log, no checkpoints, no moving average.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from benchmarks.loops import job as jobs
from benchmarks.loops.handwritten import endless
from fgtrain import place as places
from fgtrain.optimizer import build_optimizer, computes_in
from fgtrain.torchvision_compat import import_timm


def main() -> None:
    """Run one rank."""
    import_timm()
    objectives, schedulers, utils = (import_module(f"timm.{part}") for part in ("loss", "scheduler", "utils"))
    job = jobs.parse()
    recipe = job.run.recipe
    place = places.join(timeout_s=3600)
    device = place.device
    net = jobs.build(job, device)
    optimizer = build_optimizer(recipe, net)
    dtype = computes_in(recipe, device)
    autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype=dtype)
    scaler = utils.NativeScaler(device=device.type) if recipe.precision == "fp16" else None
    if place.size > 1:
        net = DistributedDataParallel(net, device_ids=[place.local_rank] if device.type == "cuda" else None)
    loader = jobs.pictures(job, place.rank)
    assert isinstance(loader.sampler, DistributedSampler)
    loss_fn = objectives.LabelSmoothingCrossEntropy(recipe.label_smoothing) if recipe.label_smoothing else None
    loss_fn = (loss_fn or torch.nn.CrossEntropyLoss()).to(device)
    scheduler = schedulers.CosineLRScheduler(optimizer, t_initial=job.run.plan.steps, t_in_epochs=False)
    losses, steps = utils.AverageMeter(), 0
    normalise = jobs.Normalise(job, device)
    turn = job.turn("timm", place.rank)
    optimizer.zero_grad()
    for number, (pictures, target) in enumerate(endless(loader, loader.sampler)):
        if number % job.accumulate == 0 and turn.over():
            break
        updates = (number + 1) % job.accumulate == 0
        images, target = normalise(pictures.to(device, non_blocking=True)), target.to(device, non_blocking=True)
        with nullcontext() if updates or not isinstance(net, DistributedDataParallel) else net.no_sync():
            with autocast():
                loss = loss_fn(net(images), target) / job.accumulate
            backward(loss, optimizer, net, scaler, updates=updates)
        losses.update(loss.item() * job.accumulate, images.size(0))
        if updates:
            steps += 1
            optimizer.zero_grad()
            scheduler.step_update(num_updates=steps, metric=losses.avg)
    places.leave()


def backward(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, net: torch.nn.Module, scaler: Any, *, updates: bool
) -> None:
    """Add gradients, and take a step with them if this is the last micro-batch of an update."""
    if scaler is not None:
        scaler(loss, optimizer, parameters=net.parameters(), need_update=updates)
        return
    loss.backward()  # type: ignore[no-untyped-call]
    if updates:
        optimizer.step()


if __name__ == "__main__":
    main()
