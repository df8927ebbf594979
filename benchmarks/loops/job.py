"""What every loop is told, and what the hand-written ones share: the run, the device, the turn, the pictures."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from benchmarks.turns import Turn
from fgtrain import images
from fgtrain.data import Images, Index, Sample
from fgtrain.dataindex import usable
from fgtrain.optimizer import computes_in
from fgtrain.preparation import preparation
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store

LONG = 200_000
"""Samples of an epoch, by repetition: an epoch's end, where loaders run dry, is not what is compared."""

Batch = list[torch.Tensor]
"""What torch's own collation makes of samples: pictures, uint8 (N, H, W, 3), and labels, int64 (N,)."""


class Job(NamedTuple):
    """The arguments of a loop's program."""

    runs: RunStore
    run: RunFile
    data: Index
    folder: Path
    address: str

    @property
    def accumulate(self) -> int:
        """Micro-batches a rank computes for an optimizer step."""
        return self.run.plan.micro_batches // self.run.world.size

    def turn(self, loop: str, rank: int) -> Turn:
        """Report to the driver. Call when the loop is about to take its first step."""
        return Turn(self.address, loop, rank, torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)


def parse() -> Job:
    """Read the command line: STORE RUN FOLDER ADDRESS."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    args = parser.parse_args()
    runs = RunStore(open_store(args.store), args.run)
    run = runs.read("run.json", RunFile)
    index, _ = usable(run.recipe.data, run.recipe.data.index())
    return Job(runs, run, index, args.folder, args.address)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """The training split as one would write it by hand: the same decoding and augmentation, drawn at random."""

    def __init__(self, data: Images, samples: tuple[Sample, ...]) -> None:
        self.data, self.samples, self.prepare = data, samples, preparation(data, "train")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[number]
        draw = cast(random.Random, random)  # the module's own generator: torch seeds it anew in every worker
        pixels = self.data.prepared(sample, self.prepare)
        out = torch.empty(self.data.crop, self.data.crop, 3, dtype=torch.uint8)
        images.cut_into(out, pixels, images.random_cut(self.data, pixels.shape[1], pixels.shape[0], draw))
        return out, sample.label


def pictures(
    job: Job,
    rank: int | None,
    dataset: type[Pictures] = Pictures,
    collate: Callable[[list[tuple[torch.Tensor, int]]], Any] | None = None,
) -> DataLoader[Any]:
    """Make the loader of a rank's micro-batches; of all ranks', for a library that shards it itself, if None.

    `collate` makes a micro-batch of samples; None: torch's own way.
    """
    recipe, workers = job.run.recipe, job.run.recipe.loader.workers
    assert isinstance(recipe.data, Images)
    repeats = -(-LONG // len(job.data.train))
    samples = dataset(recipe.data, job.data.train * repeats)
    sampler: Any = None if rank is None else DistributedSampler(samples, job.run.world.size, rank, drop_last=True)
    return DataLoader(
        samples,
        collate_fn=collate,
        batch_size=recipe.batch.micro,
        shuffle=sampler is None,
        sampler=sampler,
        drop_last=True,
        num_workers=workers,
        prefetch_factor=recipe.loader.prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
    )


class Normalise:
    """From bytes to what the network sees."""

    def __init__(self, job: Job, device: torch.device) -> None:
        data = job.run.recipe.data
        assert isinstance(data, Images)
        self._mean = torch.tensor(data.mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(data.std, device=device).view(3, 1, 1) * 255
        self._format = torch.channels_last if job.run.recipe.channels_last else torch.contiguous_format

    def __call__(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (N, H, W, 3) into float (N, 3, H, W)."""
        floats = images_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._format)
        return floats.sub_(self._mean).div_(self._std)


def precision(job: Job) -> str:
    """Name what the network computes in, as the recipe does: "fp32", "bf16" or "fp16"."""
    dtype = computes_in(job.run.recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def build(job: Job, device: torch.device) -> torch.nn.Module:
    """Make the network, in training mode; cuDNN tries its kernels out, as in our loop."""
    torch.backends.cudnn.benchmark = True
    net = job.run.recipe.model.build().to(device)
    if job.run.recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.train()


def schedule(job: Job, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Make a learning-rate schedule that is stepped once an optimizer step."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job.run.plan.steps)
