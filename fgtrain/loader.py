"""Batches by key: loader processes prepare exactly the micro-batches that a rank will compute, in order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from fgtrain import images, lifeline
from fgtrain.cache.ready import source
from fgtrain.data import BadImage, Images, Sample, Split
from fgtrain.errors import Corrupt, UserError
from fgtrain.heap import keep_freed_memory
from fgtrain.keyed import Order
from fgtrain.plan import Plan, share
from fgtrain.recipe import Recipe
from fgtrain.slots import Slots, by_key
from fgtrain.source import Source

T = TypeVar("T")

_AHEAD = 256  # pictures told of before they are needed: some seconds of work, and of any network's delays


class MicroBatch(NamedTuple):
    """`images` is uint8 (N, crop, crop, 3), `labels` int64 (N,); `ids` are (epoch, sample); N may be 0.

    `flips`, bool (N,), are the pictures that the device is to mirror; None: it has nothing to mirror.
    """

    images: torch.Tensor
    labels: npt.NDArray[np.int64]
    ids: list[tuple[int, int]]
    bad: list[BadImage]
    flips: npt.NDArray[np.bool_] | None = None


def pieces(batch: MicroBatch, micro: int, count: int) -> Iterator[MicroBatch]:
    """Cut a micro-batch into `count` of at most `micro` samples, the last ones shorter or empty; bad pictures stay out.

    Views, not copies: pinned memory stays pinned.
    """
    for start in range(0, micro * count, micro) if count > 1 else ():
        cut = slice(start, start + micro)
        flips = None if batch.flips is None else batch.flips[cut]
        yield MicroBatch(batch.images[cut], batch.labels[cut], batch.ids[cut], [], flips)
    if count == 1:
        yield batch


class Request(NamedTuple):
    """A micro-batch to be prepared: its samples by (epoch, sample index), and the slot it is to lie in, if any."""

    ids: list[tuple[int, int]]
    slot: int | None = None


class Pictures(Dataset[MicroBatch]):
    """The samples of a split, read and cut when asked for by (epoch, sample index)."""

    def __init__(
        self,
        data: Images,
        samples: tuple[Sample, ...],
        source: Source,
        seed: int | None,
        slots: Slots | None = None,
        *,
        mirror: bool = True,
    ) -> None:
        """Augment by `seed`, or take the centre crop if it is None.

        `slots` are those that requests name. Without `mirror`, mirroring is left to the device.
        """
        self.data, self.samples, self.source, self.seed, self.slots = data, samples, source, seed, slots
        self.mirror = mirror

    def __getitems__(self, request: Request) -> MicroBatch | Parcel:
        """Prepare a micro-batch, in a loader process if there are any."""
        if self.slots is None:
            return self.prepare(request.ids, torch.empty(self._shape(request), dtype=torch.uint8))
        if request.slot is None:
            return Parcel(self.prepare(request.ids, torch.empty(self._shape(request), dtype=torch.uint8)))
        room_NHWC = torch.from_numpy(self.slots.room(request.slot))
        return Parcel(self.prepare(request.ids, room_NHWC), self.slots.key, request.slot)

    def _shape(self, request: Request) -> tuple[int, int, int, int]:
        return len(request.ids), self.data.crop, self.data.crop, 3

    def prepare(self, ids: list[tuple[int, int]], out_NHWC: torch.Tensor) -> MicroBatch:
        """Prepare a micro-batch in uint8 (len(ids) or more, crop, crop, 3); bad pictures are left out and listed."""
        self.source.expect([number for _, number in ids])
        good: list[tuple[int, int]] = []
        bad: list[BadImage] = []
        flips: list[bool] = []
        for id_ in ids:
            try:
                pixels = self.source.read(id_[1])
            except Corrupt as error:
                bad.append(BadImage(self.samples[id_[1]].name, str(error)))
                continue
            cut = self._cut(id_, pixels.shape[1], pixels.shape[0])
            images.cut_into(out_NHWC[len(good)], pixels, cut if self.mirror else cut._replace(flip=False))
            good.append(id_)
            flips.append(cut.flip)
        labels = np.array([self.samples[number].label for _, number in good], dtype=np.int64)
        late = None if self.mirror else np.array(flips, dtype=np.bool_)
        return MicroBatch(out_NHWC[: len(good)], labels, good, bad, late)

    def _cut(self, id_: tuple[int, int], width: int, height: int) -> images.Cut:
        if self.seed is None:
            return images.centre(self.data, width, height)
        return images.augmented(self.data, width, height, self.seed, *id_)


class Parcel:
    """A micro-batch on its way from a loader process to its rank, where it arrives as a `MicroBatch`.

    Pictures in a slot stay where they are; without one, all bytes go through the pipe.
    """

    def __init__(self, batch: MicroBatch, key: int = 0, slot: int | None = None) -> None:
        """Wrap a micro-batch that lies in the slot `slot` of the slots `key`, or in none."""
        self._batch, self._key, self._slot = batch, key, slot

    def __reduce__(self) -> tuple[Any, ...]:
        images, *rest = self._batch
        return _arrived, (images.numpy() if self._slot is None else len(images), self._key, self._slot, *rest)


def _arrived(images: Any, key: int, slot: int | None, *rest: Any) -> MicroBatch:
    """Unpack a parcel, in the rank: `images` are themselves, or how many of them lie in the slot."""
    if slot is not None:
        images = by_key(key).filled(slot)[:images]
    return MicroBatch(torch.from_numpy(images), *rest)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Requests:
    """What to prepare, one list of (epoch, sample) a micro-batch, and where to put it; re-iterable."""

    def __init__(self, make: Callable[[], Iterator[list[tuple[int, int]]]], slots: Slots | None) -> None:
        self._make, self._slots = make, slots

    def __iter__(self) -> Iterator[Request]:
        for ids in self._make():
            yield Request(ids, self._slots.take() if self._slots else None)


def training_batches(
    recipe: Recipe, plan: Plan, samples: tuple[Sample, ...], *, start: int, rank: int, size: int, gpu: bool
) -> Iterator[MicroBatch]:
    """Yield this rank's micro-batches of every step from `start` to the end of the run; seeking costs nothing.

    For a GPU, they are in pinned memory, and mirroring is left to it.
    """
    order = Order(plan.samples, recipe.seed)

    def requests() -> Iterator[list[tuple[int, int]]]:
        for step in range(start, plan.steps):
            for micro_batch in share(plan.micro_batches, rank, size):
                yield [order[p] for p in plan.batch(step, micro_batch)]

    most = -(-plan.micro_batches // size)  # a step's are kept till its end: it may have to be taken again
    return iter(_batches(recipe, samples, "train", requests, micro=plan.micro, held=most, gpu=gpu))


def evaluation_batches(
    recipe: Recipe, samples: tuple[Sample, ...], numbers: Iterable[int], *, gpu: bool
) -> Iterable[MicroBatch]:
    """Return the evaluation micro-batches `numbers`, each `evaluate.micro` samples in index order.

    They can be had again and again, from the same loader processes, which begin with the first time.
    """
    micro, chosen = recipe.evaluate.micro, list(numbers)

    def requests() -> Iterator[list[tuple[int, int]]]:
        for number in chosen:
            yield [(0, i) for i in range(number * micro, min((number + 1) * micro, len(samples)))]

    return _batches(recipe, samples, "val", requests, micro=micro, held=2, gpu=gpu)


def _batches(
    recipe: Recipe,
    samples: tuple[Sample, ...],
    split: Split,
    requests: Callable[[], Iterator[list[tuple[int, int]]]],
    *,
    micro: int,
    held: int,
    gpu: bool,
) -> Iterable[MicroBatch]:
    """Return micro-batches of at most `micro` samples, of which the caller has at most `held` at a time."""
    data, loader = _images(recipe), recipe.loader
    room = loader.workers * loader.prefetch + held + 1
    slots = Slots(room, (micro, data.crop, data.crop, 3)) if loader.workers else None
    seed = recipe.seed if split == "train" else None
    pictures = Pictures(data, samples, source(recipe, samples, split), seed, slots, mirror=not gpu)
    asked = _Requests(_announced(recipe, samples, requests, micro), slots)
    return _loader(recipe, pictures, asked, pin=gpu, again=split == "val")  # training asks once


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


def _loader(recipe: Recipe, pictures: Pictures, requests: _Requests, *, pin: bool, again: bool) -> DataLoader[Any]:
    workers = recipe.loader.workers
    return DataLoader(
        pictures,
        batch_sampler=requests,  # type: ignore[arg-type]  # each goes to `__getitems__` as it is
        num_workers=workers,
        prefetch_factor=recipe.loader.prefetch if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_settle_worker if workers else None,
        persistent_workers=again and workers > 0,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
    )


def _settle_worker(_: int) -> None:
    """Make a loader process die with its rank, and leave notices of preemption to it."""
    lifeline.die_with_parent()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sig, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()  # a picture is as large as the last
