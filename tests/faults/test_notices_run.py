"""Real runs that are told of their end: no step is lost, the weights are those of a run that was left alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import _sky_pods
from fgtrain.notice import NoticeRecord
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.gate import BEHIND_GATE, Gate
from tests.testbed.metadata import Service, metadata_service
from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--nodes", "2", "--gpus", "1", "--set", "epochs=3.3", "--set", "loader.workers=1"),
    *("--set", "determinism=bits", "--set", "snapshots.steps=1000", "--set", "snapshots.seconds=null"),
    *("--set", "snapshots.memory_steps=0", *BEHIND_GATE),  # what is not in the store is lost
)


@pytest.fixture
def service() -> Iterator[Service]:
    with metadata_service() as running:
        running.nodes = {"node1"}  # the other node is told of nothing
        yield running


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def runs(tmp_path: Path, gate: Gate, service: Service) -> Iterator[Runs]:
    runs = Runs(tmp_path, FGLAUNCH_NOTICES=f"gcp={service.url}/{{node}}", **gate.env)
    yield runs
    runs.end()


def records(runs: Runs, name: str) -> list[NoticeRecord]:
    return RunStore(open_store(runs.store), name).read_all("notices", NoticeRecord)


def steps_taken(run: LiveRun) -> tuple[list[int], int]:
    """Return where each attempt began, and the last step that the first one took, as all its ranks know it."""
    events = run.events()
    begins = [e["step"] for e in events if e["event"] == "attempt"]
    second = next(i for i, e in enumerate(events) if e["event"] == "attempt" and e["attempt"] == 2)
    return begins, max(e["step"] for e in events[:second] if e["event"] in ("step", "snapshot"))


def weights(runs: Runs, name: str) -> str:
    return str(max(runs.json("snapshots", name), key=lambda s: s["step"])["weights"])


def test_early_snapshot_then_a_departure_that_loses_no_step(runs: Runs, gate: Gate, service: Service) -> None:
    alone = runs.call(*RECIPE, "--name", "alone")
    assert alone.returncode == 0, alone.stderr
    gate.hold(3)
    with runs.start("noticed", *RECIPE, "--name", "noticed") as run:
        gate.wait_reached(run, 3)
        service.change("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")  # no loss yet
        gate.creep(3, lambda: any(e["event"] == "snapshot" for e in run.events()), "there is an early snapshot")
        service.change("preempted", "TRUE")
        wait_for(lambda: any(r.notice.loss for r in records(runs, "noticed")), "the loss is recorded in the store")
        service.change("preempted", "FALSE")  # the machine that comes next is another one
        service.change("maintenance-event", "NONE")
        gate.open()  # only now: it would be told the same otherwise
        assert run.wait() == 0, run.output()
        (begins, last), said = steps_taken(run), run.output()
        wait_for(lambda: not run.all(), "every process of the run is gone", 240)
    told = records(runs, "noticed")
    heard = [(r.node, r.notice.source, r.notice.loss) for r in told]
    assert heard[:2] == [("node1", "gcp", False), ("node1", "gcp", True)]
    assert sum(r.notice.loss for r in told) == 1
    assert begins == [0, last]
    assert last > 3
    assert "node1: notice from gcp: preempted" in said
    assert "preemption: " in said
    assert "after node1 left" in said
    assert "the agent of node0 died" not in said  # told of nothing: its agent stays, and meets the next node1
    assert runs.samples("noticed") == runs.samples("alone")
    assert weights(runs, "noticed") == weights(runs, "alone")


def test_pod_that_is_deleted_loses_no_step(tmp_path: Path) -> None:
    """Both nodes are in the pod, whose hook is run as it ends; the next pod knows nothing of that."""
    file = tmp_path / "ends"
    gate = Gate(tmp_path)
    runs = Runs(tmp_path, FGLAUNCH_POD_ENDS=str(file), **gate.env)
    gate.hold(3)
    with runs.start("pod", *RECIPE, "--name", "pod") as run:
        gate.wait_reached(run, 3)
        with subprocess.Popen(["/bin/sh", "-c", _sky_pods.hook(str(file), 600)]) as hook:
            wait_for(lambda: len({r.node for r in records(runs, "pod")}) == 2, "both nodes are told")
            wait_for(lambda: {text[:5] for text in told_to_leave(run)} == {"node0", "node1"}, "both are to leave")
            file.unlink()
            gate.open()
            assert run.wait() == 0, run.output()
            assert hook.wait(240) == 0
        begins, last = steps_taken(run)
    assert {(r.notice.source, r.notice.loss) for r in records(runs, "pod")} == {("kubernetes", True)}
    assert begins[:2] == [0, last]  # more often, where one was told while the other was back already
    assert last > 3
    runs.end()


def told_to_leave(run: LiveRun) -> list[str]:
    said = [str(e.get("text", "")) for e in run.events() if e["event"] == "note"]
    return [text for text in said if "a snapshot, then it leaves" in text]
