"""What is left for the user when the last step is committed: weights, metrics, TensorBoard, the result."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import msgspec

from fgtrain.export import export
from fgtrain.journal import Journal
from fgtrain.manifest import Manifest
from fgtrain.runstore import Result, RunFile, RunStore
from fgtrain.state import State
from fgtrain.tensorboard import ScalarWriter


def publish(run: RunFile, runs: RunStore, state: State, journal: Journal) -> None:
    """Write the run's results into the store; `result.json` comes last. Doing it again changes nothing."""
    manifest = runs.manifest(runs.manifest_names()[-1])
    lines = runs.log_lines(manifest, "metrics")
    runs.store.put(runs.key("metrics.jsonl"), lines)
    weights = _weights(state, run) if state.whole else _stored_weights(runs, run, manifest)
    runs.store.put(runs.key("weights.safetensors"), weights)
    rows = [json.loads(line) for line in lines.splitlines()]
    _publish_board(runs, rows)
    last: dict[str, float] = next((r for r in reversed(rows) if "val_top1" in r), {})
    result = Result(
        step=manifest.step,
        weights=manifest.weights,
        last=last,
        best=state.best,
        bad_images=len(state.bad_images),
    )
    runs.write("result.json", result)
    journal.event("done", **msgspec.to_builtins(result))


def _weights(state: State, run: RunFile) -> bytes:
    """Encode the weights that were evaluated (the moving average, if there is one)."""
    from safetensors.torch import save

    with state.ema.applied(state.net) if state.ema else nullcontext():
        tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state.net.state_dict().items()}
    return save(tensors, metadata={"run": run.name, "recipe": run.recipe_digest, "step": str(state.step)})


def _stored_weights(runs: RunStore, run: RunFile, manifest: Manifest) -> bytes:
    """Return the same of a state that no rank has whole: out of the snapshot that was just committed."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.safetensors"
        metadata = {"run": run.name, "recipe": run.recipe_digest, "step": str(manifest.step)}
        export(runs, manifest, target, metadata, raw=False)
        return target.read_bytes()


def _publish_board(runs: RunStore, rows: list[dict[str, float]]) -> None:
    """Write one event file for the whole committed lineage, whatever attempts and nodes it ran on."""
    with tempfile.TemporaryDirectory() as folder:
        board = ScalarWriter(Path(folder))
        for row in rows:
            board.add(int(row["step"]), row)
        board.close()
        for file in Path(folder).iterdir():
            runs.store.put(runs.key("tensorboard/events.out.tfevents.0.lineage"), file.read_bytes())
