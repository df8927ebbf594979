"""Your own pictures: `root/train/<class>/*.jpg` and `root/val/<class>/*.jpg`, in any language."""

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import AdamW, Batch, Cosine, Loader, Recipe

RECIPE = Recipe(
    model=Timm(name="resnet50", classes=2, pretrained=True),
    data=ImageFolder(root="data", resize=256, crop=224, scale=(0.35, 1.0)),
    optim=AdamW(lr=5e-4, weight_decay=0.05),
    schedule=Cosine(warmup_epochs=1),
    batch=Batch(total=64, micro=16),
    epochs=30,
    label_smoothing=0.1,
    channels_last=True,
    loader=Loader(workers=4),
)
