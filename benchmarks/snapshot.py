"""What a snapshot costs: ours against the stock ways, on a real S3 server on loopback. One table.

    python benchmarks/snapshot.py [--rounds N] [--peer-rounds N] [--models resnet50 vit_base_patch16_224]

Bars: stall <= 1.2 of one memcpy of S / N and < 1/10 of dcp.async_save; commit and restore >= 0.85 of the
raw client's PUT and GET of the same bytes; bytes after k steps with frozen layers <= 1.05 of what changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.spread import ratios, spread  # noqa: E402
from benchmarks.table import conditions, render  # noqa: E402
from tests.testbed.s3 import S3Server, s3_server  # noqa: E402

_RANKS = 2
_IMAGE = {"resnet50": (96, 4), "vit_base_patch16_224": (224, 1)}


def run_job(server: S3Server, model: str, frozen: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model in a job of its own."""
    image, batch = _IMAGE.get(model, (224, 1))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        settings = {
            "model": model,
            "image": image,
            "batch": batch,
            "frozen": frozen,
            "folder": folder,
            "store": f"s3://{server.bucket}/ours",
            "bucket": server.bucket,
            "prefix": f"peers/{model}-{frozen}",
            "rounds": args.rounds,
            "peer_rounds": 0 if frozen else args.peer_rounds,
        }
        job = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={_RANKS}", "--standalone"]
        done = subprocess.run(
            [*job, "-m", "benchmarks.snapshots.job", msgspec.json.encode(settings).decode()],
            env=os.environ | server.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=True,
        )
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Lay out one model's figures."""
    ours, training = found["ours"], found["training"]
    floor = spread(found["floor"])
    stall = spread([r["stall"] for r in training])
    ratio = spread(ratios([r["stall"] for r in training], found["floor"]))
    mb = [r["bytes_new"] / 1e6 / max(r["commit"], 1e-9) for r in ours]
    raw_put = [r["bytes_new"] / 1e6 / s for r, s in zip(ours, found["raw_put"], strict=True)]
    raw_get = [found["state_bytes"] / 1e6 / s for s in found["raw_get"]]
    got = [found["state_bytes"] / 1e6 / s for s in found["restore"]]
    while_training = spread([r["bytes_new"] / 1e6 / max(r["commit"], 1e-9) for r in training])
    drag = spread([s for r in training for s in r["busy_steps"]]).median / spread(found["quiet"]).median
    lines = [
        [f"{name}: memcpy of S/N", _ms(floor), "1.00", "", "", "", "", "", ""],
        [
            f"{name}: ours",
            _ms(stall),
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            _against(mb, raw_put),
            f"{while_training.median:.0f}",
            _against(got, raw_get),
            f"{ours[-1]['bytes_new'] / 1e6:.1f} of {found['state_bytes'] / 1e6:.1f}",
            f"{drag:.2f}",
            f"{found['rss_ours'] / 1e6:.0f}",
        ],
    ]
    for method, seconds in found["blocked"].items():
        blocked, total = spread(seconds), spread(found["total"][method])
        speed = found["state_bytes"] / 1e6 / total.median
        times = blocked.median / max(floor.median, 1e-9)
        lines.append([f"{name}: {method}", _ms(blocked), f"{times:.1f}", f"{speed:.0f}", "", "", "", "", ""])
    return lines


def _against(ours: list[float], limit: list[float]) -> str:
    a, b, each = spread(ours).median, spread(limit).median, spread(ratios(ours, limit))
    return f"{a:.0f} / {b:.0f} = {each.median:.2f} ({each.low:.2f}-{each.high:.2f})"


def _ms(seconds: Any) -> str:
    return f"{seconds.median * 1e3:.1f} ({seconds.low * 1e3:.1f}-{seconds.high * 1e3:.1f})"


def main() -> None:
    """Measure every model, whole and frozen, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(_IMAGE))
    args = parser.parse_args()
    print(conditions())
    lines = []
    with s3_server("seaweedfs") as server:
        for model in args.models:
            for frozen in (False, True):
                name = f"{model}{', frozen backbone' if frozen else ''}"
                found = run_job(server, model, frozen, args)
                print(name, json.dumps(found), file=sys.stderr, flush=True)
                lines += rows(name, found)
    headers = [
        "",
        "blocked ms",
        "x memcpy",
        "commit MB/s / raw PUT",
        "while training",
        "restore MB/s / raw GET",
        "MB new",
        "step slowdown",
        "peak MB a rank",
    ]
    print(render(headers, lines))


if __name__ == "__main__":
    main()
