"""Images per second and core, from JPEG files of 500 x 375 to micro-batches of 448 x 448 by way of a short side of 512.

    .venv/bin/python -m benchmarks.input [--pictures FOLDER] [--rounds N]

The pictures are of CUB-200-2011's size, and about as many bytes: synthetic ones, or those of a folder, scaled up to it.
All ways read the same files, in one process on one core, and take turns; their order changes from round to round. Time
is the process's own (user and system), so that what else the machine does moves it least. The files, and the cache's,
are in memory: disks are another matter.

The rows: torchvision's transforms on Pillow's pictures, collated, as its training references do it; the same without
the conversion to normalised floats, which we leave to the device; ours as `fgtrain.loader` does it; and two floors:
decoding alone, with the decoder we use, and copying the crops alone.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.spread import median_interval, ratios, spread
from benchmarks.synthetic import picture
from benchmarks.table import conditions, render
from benchmarks.turns import turn_order
from fgtrain.cache.ready import make_ready, source
from fgtrain.data import Sample
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.loader import Pictures
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Loader, Recipe
from fgtrain.source import Fresh
from fgtrain.torchvision_compat import import_torchvision

SIZE = (500, 375)
RESIZE, CROP = 512, 448
MICRO = 8
PEER = "torchvision + Pillow"
BARS = {"ours, no cache": 2.0, "ours, cached": 20.0}

Way = Callable[[list[int]], Any]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.input", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="of JPEG files to scale up (default: synthetic)"
    )
    parser.add_argument("--count", type=int, default=128, help="different pictures (default: 128)")
    parser.add_argument("--window", type=int, default=4, help="micro-batches of 8 a turn (default: 4)")
    parser.add_argument("--rounds", type=int, default=21, help="turns each way gets (default: 21)")
    return parser.parse_args(argv)


def write_pictures(root: Path, count: int, given: Path | None) -> None:
    """Write `count` training pictures, and one to evaluate on."""
    draw = np.random.default_rng(0)
    files = sorted(given.rglob("*.jpg")) if given else []
    chosen = random.Random(0).sample(files, count + 1) if given else []
    for number in range(count + 1):
        path = root / ("train" if number else "val") / "bird" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if given:
            Image.open(chosen[number]).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS).save(path, quality=95)
        else:
            picture(draw, 0, SIZE[0]).crop((0, 0, *SIZE)).save(path, quality=96)


class Torchvision:
    """A data set and a collation as torchvision's documentation has them."""

    def __init__(self, files: Sequence[Path], *, floats: bool) -> None:
        import_torchvision()
        from torchvision import transforms as t

        last = [t.ToTensor(), t.Normalize(ImageFolder().mean, ImageFolder().std)] if floats else [t.PILToTensor()]
        self.files = files
        self.transform = t.Compose([t.Resize(RESIZE), t.RandomCrop(CROP), t.RandomHorizontalFlip(), *last])

    def __call__(self, numbers: list[int]) -> Any:
        """Return a micro-batch."""
        return default_collate([self._item(number) for number in numbers])

    def _item(self, number: int) -> Any:
        with self.files[number].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB")), 0


def ours(pictures: Pictures, numbers: list[int]) -> Any:
    """Prepare a micro-batch, of another epoch each time."""
    epoch = random.randrange(1 << 30)
    out_NHWC = torch.empty(len(numbers), CROP, CROP, 3, dtype=torch.uint8)
    return pictures.prepare([(epoch, number) for number in numbers], out_NHWC)


def decode_only(files: Sequence[Path], numbers: list[int]) -> None:
    """Read and decode, and nothing else."""
    for number in numbers:
        simplejpeg.decode_jpeg(files[number].read_bytes())


def copy_only(crops_NHWC: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """Copy as many bytes as a micro-batch has."""
    out = torch.empty(len(numbers), CROP, CROP, 3, dtype=torch.uint8)
    for place, number in enumerate(numbers):
        out[place].copy_(crops_NHWC[number])
    return out


def ways(root: Path, count: int) -> dict[str, Way]:
    """Return what is compared, ready to go; builds the cache."""
    data = ImageFolder(root=str(root), resize=RESIZE, crop=CROP)
    index = data.index()
    samples: tuple[Sample, ...] = index.train
    files = [root / sample.name for sample in samples]
    recipe = Recipe(
        model=Timm(name="resnet50", classes=1),
        data=data,
        optim=SGD(lr=0.1),
        batch=Batch(total=MICRO, micro=MICRO),
        epochs=1,
        loader=Loader(cache="disk"),
    )
    for _ in make_ready(recipe, index):
        pass
    cached = source(recipe, samples, "train")
    fresh = Fresh(data, samples, "train")
    return {
        PEER: Torchvision(files, floats=True),
        "... bytes to the device": Torchvision(files, floats=False),
        "ours, no cache": partial(ours, Pictures(data, samples, fresh, 0)),
        "decode only (floor)": partial(decode_only, files),
        "ours, cached": partial(ours, Pictures(data, samples, cached, 0)),
        "copy only (floor)": partial(copy_only, torch.zeros(count, CROP, CROP, 3, dtype=torch.uint8)),
    }


def measure(found: Mapping[str, Way], count: int, window: int, rounds: int) -> dict[str, list[float]]:
    """Return each way's CPU seconds a picture, a value a round; the first round is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in found}
    draw = random.Random(0)
    for number in range(rounds + 1):
        batches = [draw.sample(range(count), MICRO) for _ in range(window)]
        for name in turn_order(list(found), number):
            begun = time.process_time()
            for batch in batches:
                found[name](batch)
            taken[name].append((time.process_time() - begun) / (window * MICRO))
    return {name: times[1:] for name, times in taken.items()}


def report(taken: Mapping[str, Sequence[float]]) -> str:
    """Lay out the table."""
    rows = []
    for name, times in taken.items():
        faster = ratios(taken[PEER], times)
        low, high = median_interval(faster)
        bar = BARS.get(name)
        verdict = "" if bar is None else f">= {bar:g}: {'yes' if spread(faster).median >= bar else 'NO'}"
        of = f"{spread(times).median * 1e3:.3f}"
        rows.append([name, f"{1 / spread(times).median:.0f}", of, f"{spread(faster).median:.2f}"])
        rows[-1] += [f"{low:.2f} to {high:.2f}", verdict]
    return render(["way", "images/s a core", "CPU ms", "x torchvision", "95 % interval", "bar"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 if a bar is missed."""
    args = arguments(argv)
    torch.set_num_threads(1)
    print(conditions(("torch", "torchvision", "pillow", "simplejpeg")))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FGLAUNCH_CACHE"] = f"{folder}/cache"
        write_pictures(Path(folder, "pictures"), args.count, args.pictures)
        each = sum(f.stat().st_size for f in Path(folder, "pictures").rglob("*.jpg")) / (args.count + 1)
        origin = "pictures of a folder, scaled up" if args.pictures else "synthetic pictures"
        print(f"{origin}: {each / 1e3:.0f} KB each\n")
        found = ways(Path(folder, "pictures"), args.count)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        taken = measure(found, args.count, args.window, args.rounds)
    print(report(taken))
    medians = {name: spread(ratios(taken[PEER], taken[name])).median for name in BARS}
    return int(any(medians[name] < bar for name, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main())
