"""`fglaunch snapshots RUN`: what is committed, and whether it is all there; its bytes are not read."""

from __future__ import annotations

import argparse

from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from fgtrain.verify import Verifier, by_size
from launcher.prepare import default_store
from launcher.snapshots.rows import rows, show
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Run the action."""
    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    keys = [f"manifests/{n}" for n in runs.manifest_names()] + [f"abandoned/{n}" for n in runs.abandoned_names()]
    show(list(rows(runs, keys, "sizes", Verifier(runs, by_size).problem)), as_json=args.json)
    return 0
