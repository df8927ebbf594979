"""A network on devices that run out of memory: a CPU that raises what CUDA would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgtrain.models import Model
from fgtrain.models.timm import Timm
from fgtrain.parts import Part

if TYPE_CHECKING:
    import torch


class Tight(Part, Model):
    """timm's test_resnet, where there is room for `limit` samples in training, and for `shown` in evaluation."""

    classes: int
    limit: int
    shown: int
    name: str = "test_resnet"
    freeze: tuple[str, ...] = ()

    def check(self) -> None:
        """See `Model`."""

    def build(self) -> torch.nn.Module:
        """See `Model`."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        net = Timm(name=self.name, classes=self.classes).build()

        def look(net: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            full = len(inputs[0]) > (self.limit if net.training else self.shown)
            if full and not isinstance(inputs[0], FakeTensor):  # which takes no memory
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (simulated)")

        net.register_forward_pre_hook(look)
        return net
