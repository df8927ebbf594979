"""What `benchmarks.recovery` has torchrun start: the toy model by hand, with DDP and a checkpoint to go on from.

    python -m benchmarks.recovery_peer FOLDER

It trains until it is killed, and rank 0 writes a line a step to FOLDER/steps.jsonl. The data lie in memory: no loader
processes have to be started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fgtrain.data.digits import Digits
from fgtrain.torchvision_compat import import_timm

_BATCH = 32  # a rank
_EVERY = 20  # steps between checkpoints


def main() -> None:
    """Train from the last checkpoint on."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    images, labels = _digits()
    net = import_timm().create_model("test_resnet", num_classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    step = _load(folder / "last.pt", net, optimizer)
    model = DistributedDataParallel(net)
    draw = torch.Generator().manual_seed(dist.get_rank())
    with (folder / "steps.jsonl").open("a") as lines:
        while True:
            chosen = torch.randint(len(labels), (_BATCH,), generator=draw)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if dist.get_rank() == 0:
                lines.write(json.dumps({"time": time.time(), "step": step, "incarnation": os.getpid()}) + "\n")
                lines.flush()
                if step % _EVERY == 0:
                    _save(folder / "last.pt", net, optimizer, step)


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits()
    samples = data.index().train
    pixels = np.stack([data.read(s) for s in samples]).astype(np.float32) / 255
    images = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2), size=data.crop)
    return images, torch.tensor([s.label for s in samples])


def _save(file: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def _load(file: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not file.exists():
        return 0
    state = torch.load(file)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


if __name__ == "__main__":
    main()
