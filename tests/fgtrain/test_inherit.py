"""Which tensors of another run a new one begins with."""

from __future__ import annotations

import pytest
import torch

from fgtrain.errors import UserError
from fgtrain.snapshot.inherit import evaluated, matching

SAVED = {"stem.weight": (8, 3), "fc.weight": (200, 8), "fc.bias": (200,), "count": ()}


def test_all_is_taken_where_all_matches() -> None:
    assert matching(SAVED, SAVED, ()) == sorted(SAVED)


def test_head_for_other_classes_is_named_and_can_be_skipped() -> None:
    live = SAVED | {"fc.weight": (10, 8), "fc.bias": (10,)}
    with pytest.raises(UserError, match=r"fc.bias \(200 there, 10 here\), fc.weight \(200x8 there, 10x8 here\); leave"):
        matching(SAVED, live, ())
    assert matching(SAVED, live, ("fc.*",)) == ["count", "stem.weight"]


def test_tensors_that_one_side_lacks_are_named() -> None:
    with pytest.raises(UserError, match=r"count \(a number there, absent here\), new \(absent there, 4 here\)"):
        matching(SAVED, {n: s for n, s in SAVED.items() if n != "count"} | {"new": (4,)}, ())
    assert matching(SAVED, {"stem.weight": (8, 3)}, ("fc.*", "count")) == ["stem.weight"]


def test_many_differences_are_one_short_line() -> None:
    with pytest.raises(UserError, match="and 16 more") as raised:
        matching({f"layer{i:02d}": (1,) for i in range(20)}, {}, ())
    assert "\n" not in str(raised.value)


def test_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"--init-skip 'head.\*' matches no tensor"):
        matching(SAVED, SAVED, ("head.*",))


def test_moving_average_is_taken_for_the_weights() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    found = evaluated({"model/w": one, "model/n": one, "ema/w": two, "optim/w/exp_avg": one})
    assert found == {"w": two, "n": one}
