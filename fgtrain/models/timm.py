"""Image classifiers from timm (PyTorch Image Models), by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgtrain.errors import UserError
from fgtrain.models import Model
from fgtrain.parts import Part

if TYPE_CHECKING:
    import torch


class Timm(Part, Model):
    """A timm network with a new head for `classes`.

    `freeze` holds patterns of parameter names (`layer1.*`, `*` for the whole backbone); the head always trains and
    frozen BatchNorm layers stay in evaluation mode. `weights` is a local `.safetensors` or `.pth` file that replaces
    timm's download when `pretrained`. `drop` and `drop_path` are dropout and stochastic-depth rates.
    """

    name: str
    classes: int
    pretrained: bool = False
    weights: str | None = None
    freeze: tuple[str, ...] = ()
    drop: float = 0.0
    drop_path: float = 0.0

    def build(self) -> torch.nn.Module:
        """Make the network. See `Model.build`."""
        from fgtrain.freeze import freeze
        from fgtrain.torchvision_compat import import_timm

        timm = import_timm()
        if not timm.is_model(self.name):
            near = ", ".join(timm.list_models(f"*{self.name}*")[:5] or timm.list_models()[:5])
            raise UserError(f"model.name={self.name}: timm has no such model; near it: {near}")
        options: dict[str, Any] = {"drop_path_rate": self.drop_path} if self.drop_path else {}
        if self.weights:
            options["pretrained_cfg_overlay"] = {"file": self.weights}
        try:
            net: torch.nn.Module = timm.create_model(
                self.name,
                pretrained=self.pretrained,
                num_classes=self.classes,
                drop_rate=self.drop,
                **options,
            )
        except (OSError, RuntimeError) as error:
            if not self.pretrained:
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.pretrained=true: the weights of {self.name} cannot be had ({reason});"
                " set model.weights to a local file, or model.pretrained=false"
            ) from error
        head: torch.nn.Module = net.get_classifier()  # type: ignore[operator]
        freeze(net, self.freeze, head)
        return net
