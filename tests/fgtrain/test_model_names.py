"""Model names are looked up in timm's source first; only what is not found there costs an import."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fgtrain.errors import UserError
from fgtrain.models.timm import Timm


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that another process was asked about; it refuses them all."""
    names: list[str] = []

    def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        names.append(argv[-1])
        return subprocess.CompletedProcess(argv, 3, f"model.name={argv[-1]}: timm has no such model\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    return names


@pytest.mark.parametrize("name", ["resnet50", "test_resnet", "resnet50.a1_in1k", "convnext_tiny.fb_in22k_ft_in1k"])
def test_name_in_the_source_is_known_without_an_import(asked: list[str], name: str) -> None:
    Timm(name=name, classes=2).check()
    assert asked == []


@pytest.mark.parametrize("name", ["resnett50", "resnet50.nonsense", "resnet", "hf-hub:timm/resnet50", ""])
def test_other_name_is_asked_for_and_may_be_refused(asked: list[str], name: str) -> None:
    with pytest.raises(UserError, match=f"^model.name={name}: timm has no such model$"):
        Timm(name=name, classes=2).check()
    assert asked == [name]


def test_weights_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.weights=.*w.pth: there is no such file"):
        Timm(name="resnet50", classes=2, weights=str(tmp_path / "w.pth")).check()
    (tmp_path / "w.pth").write_bytes(b"x")
    Timm(name="resnet50", classes=2, weights=str(tmp_path / "w.pth")).check()


@pytest.mark.train
@pytest.mark.parametrize(("name", "known"), [("convnext_tiny_in22ft1k", True), ("resnet50.nonsense", False)])
def test_deprecated_name_is_known_and_unknown_weights_are_not(name: str, known: bool) -> None:
    if known:
        Timm(name=name, classes=2).check()
        return
    with pytest.raises(UserError, match=r"resnet50 has no weights 'nonsense'; there are a1_in1k"):
        Timm(name=name, classes=2).check()
