"""The recovery table: paired ratios, and what was never noticed is a lower bound."""

from __future__ import annotations

from benchmarks.recovery import rows, share_of_default

INF = float("inf")


def test_share_is_the_median_of_neighbours() -> None:
    assert share_of_default({"torchrun": [10.0, 20.0, 10.0], "fglaunch": [1.0, 4.0, 3.0]}, 60) == 0.2


def test_fault_that_torchrun_does_not_notice_gives_a_bound() -> None:
    gaps = {"agent": {"torchrun": [INF], "torchrun, tuned": [INF], "fglaunch": [6.0]}}
    assert rows(gaps, 60) == [["agent", "> 60", "> 60", "6.0", "< 0.10"]]


def test_fault_that_we_do_not_notice_is_no_success() -> None:
    assert share_of_default({"torchrun": [10.0], "fglaunch": [INF]}, 60) == 6.0
