"""What people do today: a DistributedDataParallel loop under torchrun that writes torch.save now and then.

    torchrun ... -m benchmarks.loops.torchrun_save FOLDER MODEL IMAGE BATCH EVERY

Each rank writes its process ID to FOLDER/pid-RANK, rank 0 a line `{"time", "step", "save_s"}` a step to
FOLDER/steps.jsonl; every EVERY steps it saves model and optimizer while the others wait.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fgtrain.models.timm import Timm


def save(state: dict[str, object], file: Path) -> float:
    """Replace a checkpoint; returns the seconds that took."""
    begun = time.perf_counter()
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
    return time.perf_counter() - begun


def main() -> None:
    """Train until killed."""
    folder, model, image, batch, every = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    net = Timm(name=model, classes=10).build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    file, step = folder / "checkpoint.pt", 0
    if file.exists():
        found = torch.load(file)
        net.load_state_dict(found["net"])
        optimizer.load_state_dict(found["optimizer"])
        step = found["step"]
    wrapped = DistributedDataParallel(net)
    images_NCHW, labels_N = torch.randn(batch, 3, image, image), torch.arange(batch) % 10
    with (folder / "steps.jsonl").open("a") as steps:
        while True:
            optimizer.zero_grad()
            F.cross_entropy(wrapped(images_NCHW), labels_N).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step, save_s = step + 1, 0.0
            if rank == 0:
                if step % every == 0:
                    save_s = save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
                steps.write(json.dumps({"time": time.time(), "step": step, "save_s": save_s}) + "\n")
                steps.flush()


if __name__ == "__main__":
    main()
