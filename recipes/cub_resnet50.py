"""CUB-200-2011 birds with a ResNet-50 at 448 pixels, the usual fine-grained setting."""

from fgtrain.data.cub200 import Cub200
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Cosine, Loader, Recipe

RECIPE = Recipe(
    model=Timm(name="resnet50", classes=200, pretrained=True),
    data=Cub200(root="data", resize=512, crop=448),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=1e-4),
    schedule=Cosine(warmup_epochs=2),
    batch=Batch(total=64, micro=8),
    epochs=50,
    label_smoothing=0.1,
    channels_last=True,
    loader=Loader(workers=4),
)
