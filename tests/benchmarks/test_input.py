"""The benchmark of the input pipeline: what it compares, and that a missed bar is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import input as bench
from benchmarks.input import BARS, CROP, MICRO, PEER, RESIZE, SIZE


def test_ways_prepare_the_same_number_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write_pictures(tmp_path, 2, None)
    assert Image.open(tmp_path / "train" / "bird" / "0001.jpg").size == SIZE
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    monkeypatch.setenv("FGLAUNCH_CACHE", str(tmp_path / "cache"))
    data = bench.ImageFolder(root=str(tmp_path), resize=RESIZE, crop=CROP)
    samples = data.index().train
    floats, _ = bench.Torchvision(files, floats=True)([0, 1])
    ours = bench.ours(bench.Pictures(data, samples, bench.Fresh(data, samples, "train"), 0), [0, 1])
    assert floats.shape == (2, 3, CROP, CROP)
    assert ours.images.shape == (2, CROP, CROP, 3)


def test_turns_are_taken_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    found = {name: (lambda batch, name=name: calls.append(f"{name}{len(batch)}")) for name in "ab"}
    taken = bench.measure(found, 20, 2, 3)
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}
    assert sorted(calls) == [f"a{MICRO}"] * 8 + [f"b{MICRO}"] * 8


def test_a_missed_bar_is_seen() -> None:
    slow, fast = BARS
    table = bench.report({PEER: [1.0, 1.0], slow: [0.6, 0.6], fast: [0.01, 0.01]})
    assert ">= 2: NO" in table
    assert ">= 20: yes" in table
