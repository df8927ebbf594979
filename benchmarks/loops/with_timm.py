"""The same training by the loop of timm's train script, as its `train_one_epoch` has it, with timm's own parts.

That script is no part of timm's package, so the loop is written down here: what it does for each micro-batch and each
update, in its order, with its defaults: the loader's prefetcher, DDP as it sets it up, its task and its loss, the loss
read and averaged every micro-batch, its clocks, the schedule stepped every update. benchmarks/README.md lists what
differs.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from benchmarks.loops import job as jobs
from benchmarks.loops.handwritten import endless
from fgtrain import place as places
from fgtrain.data import Images
from fgtrain.optimizer import build_optimizer, computes_in
from fgtrain.torchvision_compat import import_timm


class ChannelsFirst(jobs.Pictures):
    """The same pictures, uint8 (3, H, W), as timm's transforms leave them."""

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image_HWC, label = super().__getitem__(number)
        return image_HWC.permute(2, 0, 1).contiguous(), label


def main() -> None:
    """Run one rank."""
    import_timm()
    data, schedulers, tasks, utils = (import_module(f"timm.{part}") for part in ("data", "scheduler", "task", "utils"))
    job = jobs.parse()
    recipe = job.run.recipe
    place = places.join(timeout_s=3600)
    device = place.device
    net = jobs.build(job, device)
    optimizer = build_optimizer(recipe, net)
    dtype = computes_in(recipe, device)
    autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype=dtype)
    scaler = utils.NativeScaler(device=device.type) if recipe.precision == "fp16" else None
    smoothing = {"smoothing": recipe.label_smoothing}
    task = tasks.ClassificationTask(net, criterion_kwargs=smoothing, device=device, verbose=False)
    if place.size > 1:
        task.prepare_distributed(device_ids=[place.local_rank] if device.type == "cuda" else None)
    plain = jobs.pictures(job, place.rank, dataset=ChannelsFirst, collate=data.loader.fast_collate)
    sampler = plain.sampler
    assert isinstance(sampler, DistributedSampler) and isinstance(recipe.data, Images)
    loader = data.loader.PrefetchLoader(plain, mean=recipe.data.mean, std=recipe.data.std, device=device)
    scheduler = schedulers.CosineLRScheduler(optimizer, t_initial=job.run.plan.steps, t_in_epochs=False)
    update_time, data_time, losses, steps = (*(utils.AverageMeter() for _ in range(3)), 0)
    turn = job.turn("timm", place.rank)
    task.train()
    optimizer.zero_grad()
    data_start = update_start = time.time()
    for number, (images, target) in enumerate(endless(loader, sampler)):
        if number % job.accumulate == 0 and turn.over():
            break
        updates = (number + 1) % job.accumulate == 0
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        data_time.update(job.accumulate * (time.time() - data_start))
        with nullcontext() if updates else task.no_sync():
            with autocast():
                loss = task(images, target)["loss"]
            if job.accumulate > 1:
                loss /= job.accumulate
            backward(loss, optimizer, net, scaler, updates=updates)
        losses.update(loss.item() * job.accumulate, images.size(0))
        if updates:
            steps += 1
            optimizer.zero_grad()
            update_time.update(time.time() - update_start)
            update_start = time.time()
            scheduler.step_update(num_updates=steps, metric=losses.avg)
        data_start = time.time()
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
