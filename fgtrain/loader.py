"""Batches by key: loader processes prepare exactly the micro-batches that a rank will compute, in order."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fgtrain import images, lifeline
from fgtrain.cache.ready import source
from fgtrain.data import BadImage, Images, Sample
from fgtrain.errors import Corrupt, UserError
from fgtrain.keyed import Order
from fgtrain.plan import Plan, share
from fgtrain.recipe import Recipe
from fgtrain.source import Source

T = TypeVar("T")

_AHEAD = 256  # pictures told of before they are needed: some seconds of work, and of any network's delays


class MicroBatch(NamedTuple):
    """`images` is uint8 (N, crop, crop, 3), `labels` int64 (N,); `ids` are (epoch, sample); N may be 0.

    Labels are no tensor: a few bytes come cheaper through the pipe from a loader process than through shared memory,
    for which the processes shake hands tensor by tensor.
    """

    images: torch.Tensor
    labels: npt.NDArray[np.int64]
    ids: list[tuple[int, int]]
    bad: list[BadImage]


class Pictures(Dataset[MicroBatch]):
    """The samples of a split, read and cut when asked for by (epoch, sample index)."""

    def __init__(self, data: Images, samples: tuple[Sample, ...], source: Source, seed: int | None) -> None:
        """Augment by `seed`, or take the centre crop if it is None."""
        self.data, self.samples, self.source, self.seed = data, samples, source, seed

    def __getitems__(self, ids: list[tuple[int, int]]) -> MicroBatch:
        """Prepare a micro-batch; bad pictures are left out and listed."""
        self.source.expect([number for _, number in ids])
        out_NHWC = _room(len(ids), self.data.crop)
        good: list[tuple[int, int]] = []
        bad: list[BadImage] = []
        for id_ in ids:
            try:
                pixels = self.source.read(id_[1])
            except Corrupt as error:
                bad.append(BadImage(self.samples[id_[1]].name, str(error)))
                continue
            images.cut_into(out_NHWC[len(good)], pixels, self._cut(id_, pixels.shape[1], pixels.shape[0]))
            good.append(id_)
        labels = np.array([self.samples[number].label for _, number in good], dtype=np.int64)
        return MicroBatch(out_NHWC[: len(good)], labels, good, bad)

    def _cut(self, id_: tuple[int, int], width: int, height: int) -> images.Cut:
        if self.seed is None:
            return images.centre(self.data, width, height)
        return images.augmented(self.data, width, height, self.seed, *id_)


def _room(count: int, side: int) -> torch.Tensor:
    """Return memory for pictures, uint8 (count, side, side, 3); in a loader process it is shared from the start."""
    shape = (count, side, side, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collation does.
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).reshape(shape)


def _as_it_is(batch: Any) -> Any:
    return batch


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

    data = _images(recipe)
    pictures = Pictures(data, samples, source(recipe, samples, "train"), recipe.seed)
    return iter(
        _loader(recipe, pictures, _Requests(_announced(recipe, samples, requests, recipe.batch.micro)), pin=pin)
    )


def evaluation_batches(
    recipe: Recipe, samples: tuple[Sample, ...], numbers: Iterable[int], *, pin: bool
) -> Iterator[MicroBatch]:
    """Yield the evaluation micro-batches `numbers`, each `evaluate.micro` samples in index order."""
    micro, chosen = recipe.evaluate.micro, list(numbers)

    def requests() -> Iterator[list[tuple[int, int]]]:
        for number in chosen:
            yield [(0, i) for i in range(number * micro, min((number + 1) * micro, len(samples)))]

    pictures = Pictures(_images(recipe), samples, source(recipe, samples, "val"), None)
    return iter(_loader(recipe, pictures, _Requests(_announced(recipe, samples, requests, micro)), pin=pin))


def _announced(
    recipe: Recipe, samples: tuple[Sample, ...], make: Callable[[], Iterator[list[tuple[int, int]]]], micro: int
) -> Callable[[], Iterator[list[tuple[int, int]]]]:
    """Have the data told of what will be read, well before a loader process asks for it; the cache needs no telling."""
    data = _images(recipe)
    if recipe.loader.cache != "off":
        return make

    def tell(ids: list[tuple[int, int]]) -> None:
        data.expect([samples[number] for _, number in ids])

    return lambda: announced(make(), tell, -(-_AHEAD // micro))


def announced(items: Iterable[T], tell: Callable[[T], None], ahead: int) -> Iterator[T]:
    """Yield items, each after the `ahead` items that follow it have been told of."""
    told: deque[T] = deque()
    for item in items:
        tell(item)
        told.append(item)
        if len(told) > ahead:
            yield told.popleft()
    yield from told


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
        collate_fn=_as_it_is,
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
