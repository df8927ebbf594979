"""The recipe that benchmarks run where none is given: a timm network on pictures made for the purpose."""

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Cosine, Loader, Recipe

RECIPE = Recipe(
    model=Timm(name="resnet18", classes=10),
    data=ImageFolder(root="set by the benchmark", resize=96, crop=80),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=1e-4),
    schedule=Cosine(),
    batch=Batch(total=32, micro=8),
    epochs=1,
    label_smoothing=0.1,
    loader=Loader(workers=1),
)
