"""`imagefolder.py`, with parameters, gradients and optimizer state spread over all ranks by FSDP2."""

from fgtrain.recipe import replace
from fgtrain.strategies.fsdp import FSDP
from recipes.imagefolder import RECIPE as WHOLE

RECIPE = replace(WHOLE, strategy=FSDP())
