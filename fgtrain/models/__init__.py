"""Model families: each file in this package is one, found by its name. Light until `build` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgtrain.parts import Family

if TYPE_CHECKING:
    import torch


class Model(Family):
    """What every model family offers."""

    __slots__ = ()
    package = "fgtrain.models"

    # Fields that every model has (declared as struct fields by the families).
    name: str
    classes: int
    freeze: tuple[str, ...]

    def check(self) -> None:
        """Look, without importing torch here, for what `build` would refuse.

        Raises:
            UserError: as `build`.
        """
        raise NotImplementedError

    def build(self) -> torch.nn.Module:
        """Make the network, frozen parts and all; weights come from torch's global generator or a checkpoint.

        Raises:
            UserError: unknown name, weights that cannot be had, a freeze pattern that matches nothing.
        """
        raise NotImplementedError
