"""Handwritten digits (they ship with scikit-learn) on a small network: about a minute on two CPU cores."""

from fgtrain.data.digits import Digits
from fgtrain.models.timm import Timm
from fgtrain.recipe import AdamW, Batch, Cosine, Loader, Recipe, Snapshots

RECIPE = Recipe(
    model=Timm(name="test_resnet", classes=10),
    data=Digits(),
    optim=AdamW(lr=3e-3, weight_decay=0.05),
    schedule=Cosine(warmup_epochs=1),
    batch=Batch(total=64, micro=16),
    epochs=20,
    label_smoothing=0.1,
    loader=Loader(workers=1),
    snapshots=Snapshots(seconds=5),
)
