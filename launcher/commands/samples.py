"""`fglaunch samples RUN`: the sample-id log of the committed lineage."""

from __future__ import annotations

import argparse
import sys

from fgtrain.errors import UserError
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.prepare import default_store
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Print a JSON line (with --json) or a plain one for each micro-batch that led to the newest snapshot."""
    import json

    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    manifest = next((m for m in runs.manifests_newest_first() if isinstance(m, Manifest)), None)
    if manifest is None:
        raise UserError(f"{args.run} has no snapshot yet")
    lines = runs.log_lines(manifest, "samples").decode()
    if args.json:
        sys.stdout.write(lines)
        return 0
    for line in lines.splitlines():
        row = json.loads(line)
        ids = " ".join(f"{epoch}:{sample}" for epoch, sample in row["ids"])
        print(f"step {row['step']} micro {row['micro']}: {ids}")
    return 0
