"""The peer to be level with: a DistributedDataParallel loop as a good engineer writes it by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from benchmarks.loops import job as jobs
from fgtrain import place as places
from fgtrain.optimizer import autocast, build_optimizer, build_scaler


def endless(loader: Iterable[jobs.Batch], sampler: DistributedSampler[object]) -> Iterator[jobs.Batch]:
    """Yield micro-batches, epoch after epoch."""
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def main() -> None:
    """Run one rank."""
    job = jobs.parse()
    recipe = job.run.recipe
    place = places.join(timeout_s=3600)
    device = place.device
    net = jobs.build(job, device)
    optimizer, scaler = build_optimizer(recipe, net), build_scaler(recipe, device)
    scheduler = jobs.schedule(job, optimizer)
    if place.size > 1:
        ids = [place.local_rank] if device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
    loader = jobs.pictures(job, place.rank)
    assert isinstance(loader.sampler, DistributedSampler)
    batches = endless(loader, loader.sampler)
    normalise = jobs.Normalise(job, device)
    turn = job.turn("hand-written", place.rank)
    while not turn.over():
        optimizer.zero_grad(set_to_none=True)
        for micro_batch in range(job.accumulate):
            images_NHWC, labels_N = (t.to(device, non_blocking=True) for t in next(batches))
            last = micro_batch == job.accumulate - 1
            with nullcontext() if last or not isinstance(net, DistributedDataParallel) else net.no_sync():
                with autocast(recipe, device):
                    logits_NC = net(normalise(images_NHWC))
                    loss = F.cross_entropy(logits_NC, labels_N, label_smoothing=recipe.label_smoothing)
                scaler.scale(loss / job.accumulate).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    places.leave()


if __name__ == "__main__":
    main()
