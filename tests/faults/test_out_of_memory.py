"""A run on devices that are too small for its micro-batch: it goes on, and remembers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest

from tests.testbed.runs import ROOT, Runs

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

TIGHT = ROOT / "tests" / "testbed" / "tight"
RECIPE = """
from fgtrain.models.tight import Tight
from fgtrain.recipe import Snapshots, replace
from recipes.quickstart import RECIPE as QUICKSTART

RECIPE = replace(
    QUICKSTART, model=Tight(classes=10, limit=4, shown=32), epochs=1.2, snapshots=Snapshots(steps=4, memory_steps=2)
)
"""


@pytest.mark.chaos
def test_run_goes_on_with_smaller_micro_batches_and_a_restart_knows_them(tmp_path: Path) -> None:
    runs = Runs(tmp_path, PYTHONPATH=f"{TIGHT}{os.pathsep}{ROOT}")
    recipe = tmp_path / "tight.py"
    recipe.write_text(RECIPE)
    with runs.start("tight", str(recipe), "--nodes", "2", "--gpus", "1", "--name", "tight") as run:
        run.wait_step(8)
        os.kill(run.workers()[1], signal.SIGKILL)
        assert run.wait() == 0, run.output()
        events, output = run.events(), run.output()
    notes = [e["text"].splitlines() for e in events if e["event"] == "note" and "ran out of memory" in e["text"]]
    assert [lines[0].partition("; they hold")[0] for lines in notes] == [
        "step 0: 2 of 2 ranks ran out of memory with micro-batches of 16",
        "step 0: 2 of 2 ranks ran out of memory with micro-batches of 8",
    ]
    assert all(len(lines) == 4 and all("about " in line for line in lines[1:]) for lines in notes), notes
    assert "--set checkpointing=true" in output
    assert [e["attempt"] for e in events if e["event"] == "attempt"] == [1, 2]
    store = tmp_path / "store" / "runs" / "tight"
    assert json.loads((store / "micro.json").read_text())["cuts"] == [{"step": 0, "micro": 4}]
    seen = [i for line in runs.samples("tight").splitlines() for i in json.loads(line)["ids"]]
    samples = json.loads((store / "run.json").read_text())["plan"]["samples"]
    assert len(seen) == round(1.2 * samples)
    assert len({tuple(i) for i in seen}) == len(seen)
    assert json.loads((store / "result.json").read_text())["last"]["val_samples"] > 32


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_ranks_in_lockstep_start_again_with_less_in_training_and_evaluation(tmp_path: Path, strategy: str) -> None:
    if strategy == "zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: scripts/install train deepspeed")
    runs = Runs(tmp_path, PYTHONPATH=f"{TIGHT}{os.pathsep}{ROOT}")
    recipe = tmp_path / "tight.py"
    recipe.write_text(RECIPE)
    short = ("--set", "epochs=0.2", "--strategy", strategy)
    with runs.start("tight", str(recipe), "--nodes", "2", "--gpus", "1", "--name", "tight", *short) as run:
        assert run.wait() == 0, run.output()
        output = run.output()
    store = tmp_path / "store" / "runs" / "tight"
    assert json.loads((store / "micro.json").read_text()) == {
        "chosen": None,
        "cuts": [{"step": 0, "micro": 4}],
        "shown": 32,
    }
    told = [line for line in output.splitlines() if line.startswith("fitted: ")]
    assert len(told) == 3, output
    assert "they hold 8 from here on" in told[0]
    assert "What would save memory in a new run: --set " in told[0]
    assert "out of memory in evaluation with micro-batches of 64; they hold 32" in told[2]
    assert json.loads((store / "result.json").read_text())["last"]["val_samples"] > 32
