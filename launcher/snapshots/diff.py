"""`fglaunch snapshots diff A B`: what differs between two snapshots. Exit code 0: the same weights, 1: others."""

from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec

from fgtrain.compare import TensorDifference, compare
from fgtrain.lineage import find
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.commands.resume import differences
from launcher.prepare import default_store
from launcher.status import existing_run

_SHOWN = 10


def call(args: argparse.Namespace) -> int:
    """Run the action."""
    store = open_store(args.store or default_store())
    a, b = find(store, args.a), find(store, args.b)
    found = compare(a, b)
    report: dict[str, Any] = {
        "a": _side(*a),
        "b": _side(*b),
        "same_weights": found.same,
        "recipe": differences(existing_run(a[0]).recipe, existing_run(b[0]).recipe),
        **msgspec.to_builtins(found),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False) if args.json else "\n".join(spell(report, found.differ)))
    return 0 if found.same else 1


def _side(runs: RunStore, manifest: Manifest) -> dict[str, Any]:
    """Describe one snapshot: where it stands, and its last line of training metrics and of evaluation."""
    rows = [json.loads(line) for line in runs.log_lines(manifest, "metrics").splitlines()]
    training: dict[str, float] = next((r for r in reversed(rows) if "loss" in r), {})
    evaluation: dict[str, float] = next((r for r in reversed(rows) if "val_loss" in r), {})
    return {
        "run": manifest.run,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "weights": manifest.weights,
        "metrics": training | {k: v for k, v in evaluation.items() if k.startswith("val_")},
    }


def spell(report: dict[str, Any], differ: tuple[TensorDifference, ...]) -> list[str]:
    """Return the report as lines."""
    lines = []
    for side in ("a", "b"):
        s = report[side]
        figures = "  ".join(f"{k} {v:.6g}" for k, v in s["metrics"].items() if k != "step")
        lines.append(f"{side.upper()}  {s['run']}@{s['step']}-{s['attempt']}  weights {s['weights'][:16]}  {figures}")
    lines += [f"recipe: {difference}" for difference in report["recipe"]] or ["recipe: the same"]
    lines.append(f"tensors: {len(differ)} of {report['tensors']} differ" if differ else "tensors: the same")
    for d in differ[:_SHOWN]:
        lines.append(f"  {d.name}: {d.what}" + ("" if d.max_abs is None else f", max |a - b| = {d.max_abs:.3g}"))
    if len(differ) > _SHOWN:
        lines.append(f"  and {len(differ) - _SHOWN} more (--json lists them)")
    shared, a, b = report["bytes_shared"], report["bytes_a"], report["bytes_b"]
    return [*lines, f"bytes: {shared:,} shared, of {a:,} in A and {b:,} in B"]
