"""A network that goes no further than a test wants it to."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from fgtrain.models import Model
from fgtrain.models.timm import Timm
from fgtrain.parts import Part

if TYPE_CHECKING:
    import torch

_LOOK_S = 0.05


class Gated(Part, Model):
    """timm's test_resnet; a rank takes as many micro-batches as the file $GATE says, in each attempt anew.

    Without the file it takes all.
    """

    classes: int
    name: str = "test_resnet"
    freeze: tuple[str, ...] = ()

    def check(self) -> None:
        """See `Model`."""

    def build(self) -> torch.nn.Module:
        """See `Model`."""
        from torch._subclasses.fake_tensor import FakeTensor

        net = Timm(name=self.name, classes=self.classes).build()
        gate, taken = Path(os.environ["GATE"]), count()

        def wait(net: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if net.training and not isinstance(inputs[0], FakeTensor):  # which only estimates
                number = next(taken)
                while _shut(gate, number):
                    time.sleep(_LOOK_S)

        net.register_forward_pre_hook(wait)
        return net


def _shut(gate: Path, taken: int) -> bool:
    try:
        return taken >= int(gate.read_text())
    except FileNotFoundError:
        return False
    except ValueError:  # it is just being written
        return True
