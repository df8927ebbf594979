"""The benchmark of the training loop: its table, and a run of it in small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.turns import Measure
from fgtrain.errors import RecipeError
from tests.testbed.runs import ROOT

SMALL = ["--model", "test_resnet", "--image", "36", "--rounds", "2", "--steps", "1", "--no-peers"]


@pytest.fixture
def planned(tmp_path: Path) -> throughput.RunFile:
    return throughput.plan_run(throughput.arguments(SMALL), tmp_path)


def test_ratio_is_taken_round_by_round(planned: throughput.RunFile) -> None:
    ours = [Measure(1.0, 0.5), Measure(10.0, 0.5), Measure(2.0, 0.5)]
    peer = [Measure(1.1, 0.5), Measure(11.0, 0.5), Measure(2.2, 0.5)]  # a wave of noise met both
    table = throughput.report(planned, {"ours": ours, "hand-written": peer}, steps=4)
    (row,) = [line for line in table.splitlines() if line.startswith("| hand-written")]
    assert "1.100" in row
    assert "| met |" in re.sub(" +", " ", row)
    assert "64.0" in table  # images/s: 4 steps of 32 in the median 2 s


def test_missed_bar_is_said(planned: throughput.RunFile) -> None:
    windows = {"ours": [Measure(1.0, 1.0)], "hand-written": [Measure(0.97, 1.0)], "lightning": [Measure(1.0, 1.0)]}
    assert throughput.report(planned, windows, steps=1).count("missed") == 2


def test_recipe_that_the_peers_cannot_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="clip_norm"):
        throughput.plan_run(throughput.arguments([*SMALL, "--set", "clip_norm=1"]), tmp_path)
    with pytest.raises(RecipeError, match="same number"):
        throughput.plan_run(throughput.arguments([*SMALL, "--set", "batch.total=24"]), tmp_path)


@pytest.mark.chaos
@pytest.mark.train
def test_small_comparison_prints_its_table(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert throughput.main(SMALL) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ")][2:] == ["ours", "hand-written", "timm"]
    assert not any("nan" in line for line in lines)
