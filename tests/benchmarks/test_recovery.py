"""The recovery table: paired ratios, and what was never noticed is a lower bound."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.recovery import FAULTS, Gaps, rows, share_of_default, some_of, table

INF = float("inf")


def test_share_is_the_median_of_neighbours() -> None:
    assert share_of_default({"torchrun": [10.0, 20.0, 10.0], "fglaunch": [1.0, 4.0, 3.0]}, 60) == 0.2


def test_fault_that_torchrun_does_not_notice_gives_a_bound() -> None:
    gaps = {"agent": {"torchrun": [INF], "tuned": [INF], "fglaunch": [6.0]}}
    assert rows(gaps, 60) == [["agent", "> 60", "> 60", "6.0", "< 0.10"]]


def test_fault_that_we_do_not_notice_is_no_success() -> None:
    assert share_of_default({"torchrun": [10.0], "fglaunch": [INF]}, 60) == 6.0


def test_table_of_an_interrupted_measurement_says_so_and_leaves_out_what_is_missing() -> None:
    gaps: Gaps = {
        "worker": {"torchrun": [10.0, 12.0], "fglaunch": [1.0]},
        "node": {"torchrun": [30.0], "fglaunch": []},
        "agent": {"torchrun": [], "fglaunch": []},
    }
    text = table(gaps, "here", 5, 60, whole=False)
    assert "INTERRUPTED: what was taken so far, 2 or less of each" in text
    [node] = [line for line in text.splitlines() if line.startswith("| node ")]
    assert [cell.strip() for cell in node.split("|")[2:-1]] == ["30.0", "-", "-"]
    assert "met" in text
    assert "INTERRUPTED" not in table(gaps, "here", 5, 60, whole=True)


def test_bar_is_not_judged_without_the_peer_that_it_is_about() -> None:
    assert "bar" not in table({"worker": {"tuned": [5.0], "fglaunch": [1.0]}}, "here", 1, 60, whole=True)


def test_unknown_names_are_told() -> None:
    assert some_of(FAULTS)("node,worker") == ["node", "worker"]
    with pytest.raises(argparse.ArgumentTypeError, match="no 'cable'; there are worker, agent"):
        some_of(FAULTS)("cable")
