"""Recipes of every kind, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fgtrain.data.digits import Digits
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import (
    SGD,
    Adam,
    AdamW,
    Batch,
    Constant,
    Cosine,
    Ema,
    Evaluate,
    Loader,
    Recipe,
    Snapshots,
    Step,
)


def recipe(**changes: Any) -> Recipe:
    """A small recipe that makes sense, with changes."""
    whole: dict[str, Any] = {
        "model": Timm(name="test_resnet", classes=10),
        "data": Digits(),
        "optim": AdamW(lr=0.01),
        "batch": Batch(total=64, micro=16),
        "epochs": 2.0,
    }
    return Recipe(**(whole | changes))


rates = st.floats(1e-6, 1e3)
shares = st.floats(0, 0.99)
betas = st.tuples(shares, shares)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)

optims = st.one_of(
    st.builds(SGD, lr=rates, momentum=shares, nesterov=st.booleans(), weight_decay=shares),
    st.builds(Adam, lr=rates, betas=betas),
    st.builds(AdamW, lr=rates, betas=betas, eps=rates),
)
schedules = st.one_of(
    st.builds(Constant, warmup_epochs=shares),
    st.builds(Cosine, warmup_epochs=shares, final=shares),
    st.builds(Step, epochs=st.lists(rates, max_size=4).map(tuple), gamma=rates),
)
datas = st.one_of(
    st.builds(Digits, crop=st.integers(1, 28)),
    st.builds(ImageFolder, root=words, scale=st.none() | betas, mean=st.tuples(rates, rates, rates)),
)
batches = st.builds(lambda micro, count: Batch(total=micro * count, micro=micro), st.integers(1, 9), st.integers(1, 24))
recipes = st.builds(
    recipe,
    model=st.builds(Timm, name=words, classes=st.integers(1, 999), weights=st.none() | words, freeze=st.tuples(words)),
    data=datas,
    optim=optims,
    batch=batches,
    epochs=st.floats(0.1, 5),
    schedule=schedules,
    clip_norm=st.none() | rates,
    ema=st.none() | st.builds(Ema, decay=shares),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    seed=st.integers(-(2**53), 2**53),
    loader=st.builds(Loader, workers=st.integers(0, 64)),
    evaluate=st.builds(Evaluate, every_epochs=st.floats(0, 3)),
    snapshots=st.builds(Snapshots, steps=st.none() | st.integers(1, 99), seconds=st.none() | rates),
)
