"""Worlds, loader workers and resumes change neither which samples a step sees nor how they look."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from fgtrain import loader
from fgtrain.cache.ready import make_ready
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.plan import Plan, make_plan, share
from fgtrain.recipe import SGD, Batch, Evaluate, Loader, Recipe, replace
from fgtrain.source import Fresh
from fgtrain.tensors import to_input

Seen = list[tuple[int, int, list[tuple[int, int]], str]]
"""(step, micro-batch, its (epoch, sample)s, digest of its pixels and labels)."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("鸟类 birds")
    draw = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2)):
        for class_ in ("白鹭", "翠鸟 kingfisher", "水/鹭"):
            folder = root / split / class_
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"图 {i}.PNG")
    return Recipe(
        model=Timm(name="test_resnet", classes=3),
        data=ImageFolder(root=str(root), resize=36, crop=32),
        optim=SGD(lr=0.1),
        batch=Batch(total=8, micro=2),
        epochs=2.5,
    )


def seen(
    recipe: Recipe, plan: Plan, *, size: int, workers: int, start: int = 0, cache: Literal["off", "disk"] = "off"
) -> Seen:
    recipe = replace(recipe, loader=Loader(workers=workers, cache=cache))
    samples = recipe.data.index().train
    everything: Seen = []
    for rank in range(size):
        batches = loader.training_batches(recipe, plan, samples, start=start, rank=rank, size=size, gpu=False)
        for step in range(start, plan.steps):
            for micro in share(plan.micro_batches, rank, size):
                batch = next(batches)
                content = hashlib.sha256(batch.images.numpy().tobytes() + batch.labels.tobytes())
                everything.append((step, micro, batch.ids, content.hexdigest()))
        assert next(batches, None) is None
    return sorted(everything)


@pytest.fixture(scope="module")
def plan(recipe: Recipe) -> Plan:
    return make_plan(recipe, len(recipe.data.index().train))


@pytest.fixture(scope="module")
def alone(recipe: Recipe, plan: Plan) -> Seen:
    return seen(recipe, plan, size=1, workers=0)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ids_and_pixels_are_the_same_on_any_world(
    recipe: Recipe, plan: Plan, alone: Seen, size: int, workers: int
) -> None:
    assert seen(recipe, plan, size=size, workers=workers) == alone


def test_a_cache_changes_nothing_nor_do_pictures_that_it_lacks(
    recipe: Recipe, plan: Plan, alone: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGLAUNCH_CACHE", str(tmp_path))
    assert seen(recipe, plan, size=2, workers=1, cache="disk") == alone  # it is not there yet
    cached, index = replace(recipe, loader=Loader(cache="disk")), recipe.data.index()
    told = list(make_ready(cached, index))
    assert told[-1].done == told[-1].total == len(index.train) + len(index.val)
    assert not list(make_ready(cached, index))  # nothing is left to do
    assert seen(recipe, plan, size=2, workers=1, cache="disk") == alone


@pytest.mark.parametrize("start", [1, 4, 5])
def test_a_resume_in_mid_epoch_goes_on_with_the_same_pictures(
    recipe: Recipe, plan: Plan, alone: Seen, start: int
) -> None:
    assert seen(recipe, plan, size=2, workers=1, start=start) == [row for row in alone if row[0] >= start]


def test_each_epoch_sees_each_sample_once(plan: Plan, alone: Seen) -> None:
    by_epoch: dict[int, list[int]] = {}
    for _, _, ids, _ in alone:
        for epoch, sample in ids:
            by_epoch.setdefault(epoch, []).append(sample)
    for epoch in (0, 1):
        assert sorted(by_epoch[epoch]) == list(range(plan.samples))
    assert len(set(by_epoch[2])) == len(by_epoch[2]) == plan.positions - 2 * plan.samples


def test_epochs_differ_in_order_and_in_pixels(recipe: Recipe) -> None:
    data = recipe.data
    assert isinstance(data, ImageFolder)
    samples = data.index().train
    pictures = loader.Pictures(data, samples, Fresh(data, samples, "train"), seed=0)
    batch = pictures.prepare([(0, 3), (1, 3)], torch.empty(2, data.crop, data.crop, 3, dtype=torch.uint8))
    assert not np.array_equal(batch.images[0], batch.images[1])


def test_mirroring_on_the_device_gives_the_pixels_that_loaders_give(recipe: Recipe) -> None:
    data = recipe.data
    assert isinstance(data, ImageFolder)
    samples = data.index().train
    ids = [(epoch, sample) for epoch in range(3) for sample in range(5)]
    inputs = []
    for mirror in (True, False):
        pictures = loader.Pictures(data, samples, Fresh(data, samples, "train"), seed=0, mirror=mirror)
        batch = pictures.prepare(ids, torch.empty(len(ids), data.crop, data.crop, 3, dtype=torch.uint8))
        parts = list(loader.pieces(batch, 4, 4))
        inputs.append(torch.cat([to_input(p.images, recipe, torch.device("cpu"), p.flips) for p in parts]))
        assert (batch.flips is None) == mirror
    assert torch.equal(*inputs)
    assert batch.flips is not None
    assert 0 < batch.flips.sum() < len(ids)


def test_evaluations_have_the_same_pictures_time_and_again_from_the_same_processes(recipe: Recipe) -> None:
    data = recipe.data
    assert isinstance(data, ImageFolder)
    held_out = loader.evaluation_batches(
        replace(recipe, loader=Loader(workers=2), evaluate=Evaluate(micro=2)), data.index().val, range(1, 3), gpu=False
    )
    others = set(psutil.Process().children())
    seen, processes = [], []
    for _ in range(3):
        seen.append([(batch.ids, batch.images.tolist()) for batch in held_out])
        processes.append(set(psutil.Process().children()) - others)
    assert seen[0] == seen[1] == seen[2]
    assert [ids for ids, _ in seen[0]] == [[(0, 2), (0, 3)], [(0, 4), (0, 5)]]
    assert processes[0] == processes[1] == processes[2]
    assert len(processes[0]) == 2
    del held_out
    assert psutil.wait_procs(processes[0], timeout=240)[1] == []


def test_bad_pictures_found_late_are_left_out_and_listed(recipe: Recipe, plan: Plan, tmp_path: Path) -> None:
    data = recipe.data
    assert isinstance(data, ImageFolder)
    good = data.index().train
    bad = replace(data, root=str(tmp_path))  # nothing is there
    batch = next(
        loader.training_batches(
            replace(recipe, data=bad, loader=Loader(workers=0)), plan, good, start=0, rank=0, size=1, gpu=False
        )
    )
    assert batch.ids == []
    assert len(batch.bad) == plan.micro
    assert "图" in batch.bad[0].name
