"""`fglaunch snapshots export RUN[@STEP] --to FILE`: a snapshot's weights as a safetensors file; needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from fgtrain.errors import UserError
from fgtrain.export import export
from fgtrain.lineage import find
from fgtrain.stores import open_store
from launcher.foreground import say
from launcher.prepare import default_store
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Run the action."""
    target = Path(args.to)
    if not target.parent.is_dir():
        raise UserError(f"--to {target}: there is no folder {target.parent}")
    runs, manifest = find(open_store(args.store or default_store()), args.run)
    run = existing_run(runs)
    metadata = {"run": run.name, "recipe": run.recipe_digest, "step": str(manifest.step)}
    bytes_ = export(runs, manifest, target, metadata, raw=args.raw)
    averaged = any(n.startswith("ema/") for n in manifest.tensors) and not args.raw
    kind = "moving average of the weights" if averaged else "weights"
    say(f"{target}: {kind} of {run.name} after step {manifest.step}, {bytes_:,} bytes")
    return 0
