"""`fglaunch snapshots verify RUN[@STEP]`: read every byte. Exit code 1 if anything is wrong."""

from __future__ import annotations

import argparse

from fgtrain.lineage import candidates, split_reference
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from fgtrain.verify import Verifier, by_bytes
from launcher.foreground import say
from launcher.prepare import default_store
from launcher.snapshots.rows import rows, show
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Run the action."""
    name, which = split_reference(args.run)
    runs = RunStore(open_store(args.store or default_store()), name)
    existing_run(runs)
    verifier = Verifier(runs, by_bytes)
    found = list(rows(runs, [f"manifests/{n}" for n in candidates(runs, which)], "bytes", verifier.problem))
    show(found, as_json=args.json)
    damaged = [r["step"] for r in found if not r["verified"]]
    summary = f"{len(found)} snapshots, {verifier.bytes_:,} bytes read"
    say(f"{summary}: {f'damaged: steps {damaged}' if damaged else 'all verified'}")
    return 1 if damaged else 0
