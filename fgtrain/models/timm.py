"""Image classifiers from timm (PyTorch Image Models), by name."""

from __future__ import annotations

import difflib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fgtrain.errors import UserError
from fgtrain.models import Model
from fgtrain.parts import Part

if TYPE_CHECKING:
    import torch


_REFUSED = 3  # exit status: timm does not know the model


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

    def check(self) -> None:
        """See `Model.check`. A name that stands in timm's source costs milliseconds; others, an import elsewhere."""
        if self.weights and not Path(self.weights).is_file():
            raise UserError(f"model.weights={self.weights}: there is no such file")
        if importlib.util.find_spec("timm") is None or _stands_in_source(self.name):
            return
        argv = [sys.executable, "-m", "fgtrain.models.timm", self.name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode == _REFUSED:
            raise UserError(done.stdout.strip())

    def build(self) -> torch.nn.Module:
        """Make the network. See `Model.build`."""
        from fgtrain.freeze import freeze
        from fgtrain.torchvision_compat import import_timm

        timm = import_timm()
        _require_known(timm, self.name)
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
        except TypeError as error:
            raise UserError(self._not_taken(str(error))) from error
        except (OSError, RuntimeError) as error:
            if not self.pretrained:
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.pretrained=true: the weights of {self.name} cannot be had ({reason});"
                " set model.weights to a local file, or model.pretrained=false"
            ) from error
        freeze(net, self.freeze, _heads(net, self.name))
        return net

    def _not_taken(self, error: str) -> str:
        """Say which field a network's constructor has refused, by its TypeError."""
        for field, option in (("drop_path", "drop_path_rate"), ("drop", "drop_rate")):
            if (value := getattr(self, field)) and f"'{option}'" in error:
                return f"model.{field}={value}: {self.name} has no such rate: --set model.{field}=0"
        return f"model.name={self.name}: timm cannot make a classifier of it ({error}); take another model"


def _heads(net: torch.nn.Module, name: str) -> tuple[torch.nn.Module, ...]:
    """Return what of a network gives the scores: a second head, too, where it has one to be distilled through.

    Both train: a network with two returns the mean of their scores, unless it is told to be distilled.

    Raises:
        UserError: it gives none, as an encoder.
    """
    if not hasattr(net, "get_classifier"):
        raise UserError(f"model.name={name}: it is no classifier, but an encoder; take another model")
    found: Any = net.get_classifier()  # type: ignore[operator]
    return found if isinstance(found, tuple) else (found,)


def preload() -> None:
    """Import what `Timm.build` will."""
    from fgtrain.torchvision_compat import import_timm

    import_timm()


def _stands_in_source(name: str) -> bool:
    """Tell whether timm's source, read as text, defines an architecture and, after a dot, its pretrained tag.

    False proves nothing: deprecated and generated names are made at import.
    """
    spec = importlib.util.find_spec("timm")
    texts = [
        file.read_text(encoding="utf-8")
        for place in (spec and spec.submodule_search_locations) or ()
        for file in Path(place, "models").glob("*.py")
    ]
    definition, tagged = f"\ndef {name.partition('.')[0]}(pretrained", (f"'{name}'", f'"{name}"')
    return any(definition in t and ("." not in name or any(n in t for n in tagged)) for t in texts)


def _require_known(timm: ModuleType, name: str) -> None:
    """Refuse a name that timm has no model for.

    Raises:
        UserError: names the nearest ones.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"near it: {', '.join(near)}" if near else "`timm.list_models()` lists them"
        raise UserError(f"model.name={name}: timm has no such model; {hint}")
    architecture, _, tag = name.partition(".")
    tags = [n.partition(".")[2] for n in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in tags:
        raise UserError(f"model.name={name}: {architecture} has no weights {tag!r}; there are {', '.join(tags)}")


def _main() -> int:
    """Say on standard output why timm does not know a model: `python -m fgtrain.models.timm NAME`."""
    from fgtrain.torchvision_compat import import_timm

    try:
        _require_known(import_timm(), sys.argv[1])
    except UserError as error:
        print(error)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
