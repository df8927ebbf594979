"""The same training with Hugging Face Accelerate, as its documentation has it."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs

from benchmarks.loops import job as jobs
from fgtrain.optimizer import build_optimizer


def main() -> None:
    """Run one rank."""
    job = jobs.parse()
    recipe = job.run.recipe
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(jobs.precision(job), jobs.precision(job)),
        gradient_accumulation_steps=job.accumulate,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),  # as its guide to performance has it
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    net = jobs.build(job, accelerator.device)
    optimizer = build_optimizer(recipe, net)
    scheduler = jobs.schedule(job, optimizer)
    loader = jobs.pictures(job, rank=None)
    net, optimizer, loader, scheduler = accelerator.prepare(net, optimizer, loader, scheduler)
    normalise = jobs.Normalise(job, accelerator.device)
    turn = job.turn("accelerate", int(os.environ["RANK"]))
    done, taken = False, 0
    while not done:
        for images_NHWC, labels_N in loader:
            if taken % job.accumulate == 0 and (done := turn.over()):
                break
            with accelerator.accumulate(net):
                with accelerator.autocast():
                    logits_NC = net(normalise(images_NHWC))
                    loss = F.cross_entropy(logits_NC, labels_N, label_smoothing=recipe.label_smoothing)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
            taken += 1
    accelerator.end_training()


if __name__ == "__main__":
    main()
