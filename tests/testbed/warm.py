"""What `tests.testbed.rank_pool` has imported once, before it forks: the slow part of starting a rank."""

from fgtrain import train
from fgtrain.torchvision_compat import import_timm

import_timm()
__all__ = ["train"]
