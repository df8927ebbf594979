"""Evaluations: the same on any world, given up on all ranks when one is to go, and made up for later."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fgtrain.build import build_state
from fgtrain.evaluate import Evaluations
from fgtrain.journal import Journal
from fgtrain.place import Place
from fgtrain.plan import make_plan
from fgtrain.pulse import Pulse
from fgtrain.recipe import Evaluate, Loader, Recipe
from tests.fgtrain.recipes import recipe
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train

SMALL = recipe(evaluate=Evaluate(micro=100), loader=Loader(workers=0))


def evaluations(place: Place, small: Recipe, gone: int | None, asked_after: int) -> dict[str, Any]:
    """Evaluate the first step, while rank `gone` is asked to leave after some micro-batches; then once more."""
    torch.set_num_threads(1)
    index = small.data.index()
    state = build_state(small, place.device)
    state.step = make_plan(small, len(index.train)).steps
    looked = 0

    def stop_asked() -> bool:
        nonlocal looked
        looked += 1
        return place.rank == gone and looked > asked_after

    with tempfile.TemporaryDirectory() as folder:
        parts = (small, make_plan(small, len(index.train)), index.val, state, place, Journal(Path(folder), place))
        first = Evaluations(*parts, stop_asked, Pulse()).settle()
        seen = looked
        training, values = state.net.training, state.values()
        state.evaluated = values["evaluated"]
        later = Evaluations(*parts, lambda: False, Pulse())
        due = later.due
        again = later.settle()
    return {"first": first, "seen": seen, "due": due, "again": again, "best": state.best, "training": training}


def test_notice_in_an_evaluation_ends_it_on_all_ranks_and_the_next_attempt_makes_up_for_it(ranks: Ranks) -> None:
    [alone] = ranks.call(1, evaluations, SMALL, None, 0)
    assert (alone["first"], alone["due"], alone["training"]) == (True, False, True)
    assert alone["seen"] >= 4  # it is asked again and again
    for gone in (0, 1):
        both = ranks.call(2, evaluations, SMALL, gone, 1)
        for rank in both:
            assert (rank["first"], rank["due"], rank["again"], rank["training"]) == (False, True, True, True)
            assert rank["seen"] == 2  # the others hear of it at once
            assert rank["best"] == pytest.approx(alone["best"])


def test_ranks_with_different_shares_finish_together(ranks: Ranks) -> None:
    [alone] = ranks.call(1, evaluations, SMALL, None, 0)
    for rank in ranks.call(3, evaluations, SMALL, None, 0):  # 4 micro-batches among 3
        assert rank["first"]
        assert rank["best"] == pytest.approx(alone["best"])
