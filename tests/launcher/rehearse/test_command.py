"""`fglaunch rehearse --simulate`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.cli import main
from launcher.status import Status
from tests.fgtrain.test_runstore import run_file
from tests.testbed.runs import ROOT

RECIPE = str(ROOT / "recipes" / "quickstart.py")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "trace.csv"
    file.write_text("0,add,a\n0,add,b\n0,add,c\n1800000,remove,a\n3600000,remove,b\n7200000,add,d\n")
    return str(file)


def simulated(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    assert main(["rehearse", RECIPE, "--simulate", "--json", *args]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_trace_is_modelled_at_its_own_pace(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = simulated(capsys, "--trace", trace, "--nodes", "2", "--price", "3")
    model, best, optimum = found["lines"]  # type: ignore[misc]
    assert optimum["useful_s"] <= 3600
    assert model["waiting_s"] == 3600
    assert model["goodput"] <= best["goodput"] <= optimum["goodput"]
    assert found["cost"] == pytest.approx(3 * (2 * 1 + 1 * 1))


def test_elastic_run_does_not_wait(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = simulated(capsys, "--trace", trace, "--nodes", "1:3")
    assert found["lines"][0]["waiting_s"] == 0  # type: ignore[index]


def test_nodes_are_lost_at_random_where_there_is_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--mtbf-hours", "24", "--hours", "336", "--nodes", "90:100")
    found = simulated(capsys, *args)
    assert found["trace"]["node_mtbf_s"] == pytest.approx(24 * 3600, rel=0.1)  # type: ignore[index]
    assert simulated(capsys, *args) == found


def test_table_names_the_costs_it_assumes(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", RECIPE, "--simulate", "--trace", trace, "--hours", "1"]) == 0
    said = capsys.readouterr()
    assert "offline optimum" in said.out
    assert "trace: 1.00 h, 2 to 3 nodes, 1 lost" in said.out
    assert "costs: step 1 s on 2 nodes" in said.out
    assert "--costs-from RUN" in said.err


def test_costs_are_those_of_a_run(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = run_file(), tmp_path / "node0"
    runs = RunStore(open_store(str(tmp_path / "store")), run.name)
    runs.create("run.json", run)
    whom = {"host": "h", "pid": 1, "token": "", "nodes": (str(folder),)}
    runs.write("status.json", Status(state="finished", step=9, steps=9, updated=0.0, **whom))  # type: ignore[arg-type]
    folder.mkdir()
    ranks = run.world.gpus * 2
    events = [{"event": "attempt", "time": 5.0, "attempt": 1, "step": 0, "world": ranks, "steps": 9}]
    events += [{"event": "step", "time": 5.0 + 0.25 * i, "step": i} for i in range(1, 9)]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    store = ("--store", str(tmp_path / "store"))
    costs = simulated(capsys, "--trace", trace, "--costs-from", run.name, *store)["costs"]
    assert costs["step"] == {"2": 0.25}  # type: ignore[index]
    (folder / "events.jsonl").write_text("")
    assert main(["rehearse", RECIPE, "--simulate", "--trace", trace, "--costs-from", run.name, *store]) == 2
    assert "no event of this run is on this machine" in capsys.readouterr().err


def test_deadline_is_met_cheaper_with_both_than_on_demand(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--nodes", "2", "--work-hours", "1.2", "--deadline-hours", "1.9", "--price", "1", "--on-demand", "4")
    bought, spot, both = simulated(capsys, "--trace", trace, *args)["deadline"]  # type: ignore[misc]
    assert bought.startswith("on-demand only: done after 1.21 h; 0.00 h spot, 1.21 h on-demand, 9.")
    assert spot.startswith("spot only: not done by the end of the trace; ")
    assert both.startswith("uniform progress: done after 1.")
    assert float(both.rsplit(" ", 1)[1]) < float(bought.rsplit(" ", 1)[1])


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        ([], "--trace FILE or --mtbf-hours"),
        (["--trace", "TRACE", "--mtbf-hours", "3"], "--trace FILE or --mtbf-hours"),
        (["--mtbf-hours", "3"], "--mtbf-hours: say with --hours"),
        (["--trace", "TRACE", "--nodes", "4"], "--nodes 4: the trace never has 4 nodes"),
        (["--trace", "TRACE", "--nodes", "3:2"], "--nodes 3:2"),
        (["--trace", "TRACE", "--nodes", "two"], "--nodes two"),
        (["--trace", "TRACE", "--speed", "2"], "--speed: only without --simulate"),
        (["--trace", "TRACE", "--hours", "-1"], "--hours -1"),
        (["--trace", "TRACE", "--notice", "-1"], "--notice -1"),
        (["--trace", "TRACE", "--costs-from", "nobody"], "no run called 'nobody'"),
        (["--trace", "TRACE", "--set", "epoch=1"], "epoch"),
        (["--trace", "TRACE", "--work-hours", "3"], "--work-hours and --deadline-hours"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    trace: str, args: list[str], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [trace if a == "TRACE" else a for a in args]
    assert main(["rehearse", RECIPE, "--simulate", "--store", str(tmp_path / "store"), *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert wrong in said[-1]
    assert len(said) == 1
