"""`imagefolder.py`, with gradients and optimizer state spread over all ranks by DeepSpeed's ZeRO, stage 2."""

from fgtrain.recipe import replace
from fgtrain.strategies.zero import ZeRO
from recipes.imagefolder import RECIPE as WHOLE

RECIPE = replace(WHOLE, strategy=ZeRO(stage=2))
