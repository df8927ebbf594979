"""The trial of a recipe's model: runs beside other work, is done once if all is well, stops no start by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fgtrain.errors import RecipeError
from launcher import trial
from launcher.trial import tried
from tests.fgtrain.recipes import recipe

READS = "import sys; told = sys.stdin.read(); "
FILE = Path("r.py")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "_TIMEOUT_S", 240.0)
    return tmp_path


def program(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(trial, "_ARGV", (sys.executable, "-c", READS + text))


def kept(cache: Path) -> int:
    return sum(f.is_file() for f in cache.rglob("*"))


def test_refusal_names_the_file_and_is_asked_for_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "assert 'test_resnet' in told; print('data.crop=1: too small'); sys.exit(3)")
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"^r.py: data.crop=1: too small$"), tried(recipe(), FILE):
            pass
    assert kept(cache) == 0


def test_what_went_well_is_not_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "pass")
    with tried(recipe(), FILE):
        pass
    program(monkeypatch, "print('refused'); sys.exit(3)")
    with tried(recipe(), FILE):
        pass
    assert kept(cache) == 1
    with pytest.raises(RecipeError, match="refused"), tried(recipe(checkpointing=True), FILE):
        pass


def test_trial_that_fails_by_itself_or_takes_too_long_is_no_obstacle(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, "raise ImportError('no torch')")
    with tried(recipe(), FILE):
        pass
    monkeypatch.setattr(trial, "_TIMEOUT_S", 0.0)
    program(monkeypatch, "import time; time.sleep(600)")
    with tried(recipe(), FILE):
        pass
    assert kept(cache) == 0


def test_what_fails_meanwhile_comes_first_and_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(RecipeError, match="the data"), tried(recipe(), FILE):
        raise RecipeError("the data")
