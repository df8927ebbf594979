"""Spot traces: what is read, what is refused and how, and the arithmetic on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import UserError
from launcher.rehearse import traces
from launcher.rehearse.traces import Change, Trace, read_trace
from tests.picture_files import real_data

LINES = "0,add,a\n0,add,b\n60000,remove,a\n90000,add,c\n120000,remove,b\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text, encoding="utf-8")
    return file


def test_lines_are_read(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, LINES))
    assert trace.end_s == 120
    assert trace.changes[2] == Change(60.0, "a", False)
    assert list(traces.counts(trace)) == [(0, 0), (60, 2), (30, 1), (30, 2), (0, 1)]


def test_counts_are_read_and_the_oldest_go_first(tmp_path: Path) -> None:
    text = json.dumps({"metadata": {"gap_seconds": 10}, "data": [2, 3, 1, 1]})
    trace = read_trace(written(tmp_path, text))
    assert trace.end_s == 40
    assert [(c.at_s, c.node) for c in trace.changes if not c.here] == [(20.0, "node1"), (20.0, "node2")]
    assert traces.availability(trace, 2) == 0.5


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0,add,a\nsoon,add,b\n", ":2: 'soon,add,b'"),
        ("0,add,a\n5,gone,a\n", ":2: '5,gone,a'"),
        ("0,add\n", ":1: '0,add'"),
        ("-1,add,a\n", ":1: "),
        ("9,add,a\n5,add,b\n", "earlier than the line before"),
        ("0,add,a\n5,add,a\n", "a is here already"),
        ("0,remove,a\n", "a is not here"),
        ("", "no node ever appears"),
        ("0,add,a\n", "no length"),
        ("{oops", ":1: not JSON"),
        ('{"metadata": {}, "data": [1]}', "metadata.gap_seconds is None"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "metadata.gap_seconds is 0"),
        ('{"metadata": {"gap_seconds": 1}, "data": 3}', "data is not a list"),
        ('{"metadata": {"gap_seconds": 1}, "data": [1, -2]}', "data[1] is -2"),
        ('{"metadata": {"gap_seconds": 1}, "data": [1, 2.5]}', "data[1] is 2.5"),
        ('{"metadata": {"gap_seconds": 1}, "data": [0, 0]}', "no node ever appears"),
    ],
)
def test_bad_trace_is_named_with_its_place(tmp_path: Path, text: str, wrong: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_trace(file)
    assert str(file) in str(refused.value)
    assert wrong in str(refused.value)
    assert "\n" not in str(refused.value)


def test_absent_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.csv"):
        read_trace(tmp_path / "nothing.csv")


def test_statistics_of_a_small_trace(tmp_path: Path) -> None:
    found = traces.statistics(read_trace(written(tmp_path, LINES)))
    assert (found.least, found.most, found.losses, found.interruptions) == (1, 2, 2, 2)
    assert found.mtbf_s == 60
    assert found.node_mtbf_s == (120 + 30 + 60) / 2


def test_trace_without_losses_has_no_mtbf() -> None:
    found = traces.statistics(Trace((Change(0.0, "a", True),), 10.0))
    assert found.mtbf_s is None
    assert found.node_mtbf_s is None


def test_notice_takes_a_node_away_early_but_not_before_it_came(tmp_path: Path) -> None:
    trace = traces.noticed(read_trace(written(tmp_path, "0,add,a\n50000,add,b\n60000,remove,b\n90000,remove,a\n")), 20)
    assert [(c.at_s, c.node) for c in trace.changes if not c.here] == [(50.0, "b"), (70.0, "a")]


def test_faster_and_first_keep_the_order_and_the_ratio(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, LINES))
    quick = traces.faster(trace, 60)
    assert quick.end_s == 2
    assert traces.availability(quick, 2) == traces.availability(trace, 2)
    assert traces.first(trace, 75).changes == trace.changes[:3]


def test_random_trace_loses_nodes_at_the_rate_asked_for() -> None:
    trace = traces.random_trace(200, 1000.0, 10.0, 20_000.0)
    found = traces.statistics(trace)
    assert found.node_mtbf_s == pytest.approx(1000, rel=0.1)
    assert traces.random_trace(200, 1000.0, 10.0, 20_000.0) == trace


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30))
def test_counts_come_back_as_they_were_given(counts: list[int]) -> None:
    trace = Trace(tuple(traces._from_counts(counts, 5.0)), 5.0 * len(counts))
    at = [n for seconds, n in traces.counts(trace) for _ in range(round(seconds / 5))]
    assert at == counts


def test_bamboo_trace_is_read() -> None:
    found = traces.statistics(read_trace(real_data("traces") / "bamboo_p3.csv"))
    assert (found.losses, found.interruptions, found.most) == (167, 79, 32)
    assert found.hours == pytest.approx(11.37, abs=0.01)
