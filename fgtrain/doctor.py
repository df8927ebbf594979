"""What torch finds on this machine, as JSON: `python -m fgtrain.doctor`, apart since imports may crash."""

from __future__ import annotations

import json
from typing import Any


def main() -> None:
    """Print one JSON object."""
    import torch
    import torch.distributed as dist

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": _nccl(),
        "imports": {},
    }
    from fgtrain import torchvision_compat

    for name, import_it in (
        ("torchvision", torchvision_compat.import_torchvision),
        ("timm", torchvision_compat.import_timm),
    ):
        try:
            found["imports"][name] = {"version": import_it().__version__, "error": None}
        except Exception as error:  # whatever a broken package does
            found["imports"][name] = {"version": None, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(found))


def _gpu(number: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(number)
    return {"name": properties.name, "bytes": properties.total_memory}


def _nccl() -> str | None:
    import torch
    import torch.distributed as dist

    if not (torch.cuda.is_available() and dist.is_available() and dist.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
