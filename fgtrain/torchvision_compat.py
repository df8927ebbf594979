"""The one place that copes with a torchvision whose compiled operators do not load.

timm imports torchvision; a torchvision built for another torch (a CUDA build beside a CPU torch, say) fails at import
because the schemas of its operators are missing. Nothing here needs those operators, so their schemas are defined and
the import tried again. A torchvision that matches its torch never gets past the first line.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # a torch.library.Library withdraws its schemas when it is collected


def import_torchvision() -> ModuleType:
    """Import torchvision, without its compiled operators where they do not load."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """Import timm."""
    import_torchvision()
    return importlib.import_module("timm")
