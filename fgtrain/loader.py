"""Batches by key: loader processes prepare exactly the micro-batches that a rank will compute, in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from fgtrain import images, lifeline
from fgtrain.data import BadImage, Images, Sample
from fgtrain.errors import Corrupt, UserError
from fgtrain.keyed import Order
from fgtrain.plan import Plan, share
from fgtrain.recipe import Recipe


class Item(NamedTuple):
    """One prepared sample: its (epoch, sample index), its picture (crop, crop, 3) and its label."""

    id: tuple[int, int]
    pixels: npt.NDArray[np.uint8]
    label: int


class MicroBatch(NamedTuple):
    """`images` is uint8 (N, crop, crop, 3), `labels` int64 (N,); `ids` are (epoch, sample); N may be 0.

    Labels are no tensor: a few bytes come cheaper through the pipe from a loader process than through shared memory,
    for which the processes shake hands tensor by tensor.
    """

    images: torch.Tensor
    labels: npt.NDArray[np.int64]
    ids: list[tuple[int, int]]
    bad: list[BadImage]


def pieces(batch: MicroBatch, micro: int, count: int) -> Iterator[MicroBatch]:
    """Cut a micro-batch into `count` of at most `micro` samples, the last ones shorter or empty; bad pictures stay out.

    Views, not copies: pinned memory stays pinned.
    """
    for start in range(0, micro * count, micro) if count > 1 else ():
        cut = slice(start, start + micro)
        yield MicroBatch(batch.images[cut], batch.labels[cut], batch.ids[cut], [])
    if count == 1:
        yield batch


class Pictures(Dataset[Item | BadImage]):
    """The samples of a split, read and cut when asked for by (epoch, sample index)."""

    def __init__(self, data: Images, samples: tuple[Sample, ...], seed: int | None) -> None:
        """Augment by `seed`, or take the centre crop if it is None."""
        self.data, self.samples, self.seed = data, samples, seed

    def __getitem__(self, id_: tuple[int, int]) -> Item | BadImage:
        epoch, number = id_
        sample = self.samples[number]
        try:
            pixels = self.data.read(sample)
        except Corrupt as error:
            return BadImage(sample.name, str(error))
        if self.seed is None:
            return Item(id_, images.centre(pixels, self.data), sample.label)
        return Item(id_, images.augment(pixels, self.data, self.seed, epoch, number), sample.label)


class _Collate:
    """Stack items into a micro-batch; bad pictures are left out and listed."""

    def __init__(self, crop: int) -> None:
        self.crop = crop

    def __call__(self, items: list[Item | BadImage]) -> MicroBatch:
        good = [i for i in items if isinstance(i, Item)]
        pixels = np.stack([i.pixels for i in good]) if good else np.zeros((0, self.crop, self.crop, 3), np.uint8)
        return MicroBatch(
            torch.from_numpy(pixels),
            np.array([i.label for i in good], dtype=np.int64),
            [i.id for i in good],
            [i for i in items if isinstance(i, BadImage)],
        )


class _Requests:
    """What to prepare, one list of (epoch, sample) a micro-batch; re-iterable."""

    def __init__(self, make: Callable[[], Iterator[list[tuple[int, int]]]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._make()


def training_batches(
    recipe: Recipe, plan: Plan, samples: tuple[Sample, ...], *, start: int, rank: int, size: int, pin: bool
) -> Iterator[MicroBatch]:
    """Yield this rank's micro-batches of every step from `start` to the end of the run; seeking costs nothing."""
    order = Order(plan.samples, recipe.seed)

    def requests() -> Iterator[list[tuple[int, int]]]:
        for step in range(start, plan.steps):
            for micro_batch in share(plan.micro_batches, rank, size):
                yield [order[p] for p in plan.batch(step, micro_batch)]

    pictures = Pictures(_images(recipe), samples, recipe.seed)
    return iter(_loader(recipe, pictures, _Requests(requests), pin=pin))


def evaluation_batches(
    recipe: Recipe, samples: tuple[Sample, ...], numbers: Iterable[int], *, pin: bool
) -> Iterator[MicroBatch]:
    """Yield the evaluation micro-batches `numbers`, each `evaluate.micro` samples in index order."""
    micro, chosen = recipe.evaluate.micro, list(numbers)

    def requests() -> Iterator[list[tuple[int, int]]]:
        for number in chosen:
            yield [(0, i) for i in range(number * micro, min((number + 1) * micro, len(samples)))]

    return iter(_loader(recipe, Pictures(_images(recipe), samples, None), _Requests(requests), pin=pin))


def checked(batch: MicroBatch, recipe: Recipe) -> MicroBatch:
    """Apply the recipe's policy on pictures that turn out to be bad only when decoded.

    Raises:
        UserError: the policy is to fail.
    """
    if batch.bad and _images(recipe).on_bad_image == "fail":
        bad = batch.bad[0]
        raise UserError(f"{bad.reason}; remove it, or go on without it: --set data.on_bad_image=skip")
    return batch


def _images(recipe: Recipe) -> Images:
    assert isinstance(recipe.data, Images)
    return recipe.data


def _loader(recipe: Recipe, pictures: Pictures, requests: _Requests, *, pin: bool) -> DataLoader[Any]:
    workers = recipe.loader.workers
    return DataLoader(
        pictures,
        batch_sampler=requests,
        num_workers=workers,
        prefetch_factor=recipe.loader.prefetch if workers else None,
        collate_fn=_Collate(_images(recipe).crop),
        worker_init_fn=_settle_worker if workers else None,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
    )


def _settle_worker(_: int) -> None:
    """Make a loader process die with its rank, and leave notices of preemption to it."""
    lifeline.die_with_parent()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sig, signal.SIG_IGN)
    torch.set_num_threads(1)
