"""Losses that a device is still computing are written a step late, in order, none left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fgtrain.journal import Journal
from fgtrain.late import Here, Late, late
from fgtrain.place import Place
from fgtrain.step import StepReport, Wishes


class Slow:
    """A device that is done when it is waited for."""

    def __init__(self, value: float) -> None:
        self.value, self.waited = value, False

    def known(self) -> bool:
        return self.waited

    def values(self) -> list[float]:
        self.waited = True
        return [self.value]


def report(losses: Late) -> StepReport:
    return StepReport(losses, 0.1, 1, Wishes(), [(0, [(0, 1)])], [])


def written(journal: Journal) -> list[float]:
    return [json.loads(line)["loss"] for _, line in journal._lines.get("metrics", [])]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, Place(0, 1, 0, torch.device("cpu")))


def test_the_newest_step_is_not_waited_for(journal: Journal) -> None:
    slow = [Slow(1.0), Slow(2.0), Slow(3.0)]
    for step, losses in enumerate(slow, 1):
        journal.step(step, 0.0, report(losses))
    assert [s.waited for s in slow] == [True, True, False]
    assert written(journal) == [1.0, 2.0]


def test_a_snapshot_and_the_end_have_every_step(journal: Journal) -> None:
    journal.step(1, 0.0, report(Slow(1.0)))
    assert [step for step, _ in journal.uncommitted()["metrics"]] == [1]
    journal.step(2, 0.0, report(Slow(2.0)))
    journal.close()
    assert written(journal) == [1.0, 2.0]


def test_what_is_known_is_written_at_once(journal: Journal) -> None:
    journal.step(1, 0.0, report(late(torch.tensor([1.0, 2.0]))))
    assert written(journal) == [3.0]
    assert Here([4.0]).values() == [4.0]
