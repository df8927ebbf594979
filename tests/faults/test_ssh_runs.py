"""Runs over two hosts that SSH leads to: hurt in their network, their processes and their launcher."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import netns
from tests.testbed.netns import Hosts
from tests.testbed.runs import ROOT, LiveRun, Runs, wait_for
from tests.testbed.s3 import S3Server
from tests.testbed.s3_proxy import s3_proxy

pytestmark = pytest.mark.train

EPOCHS, SAMPLES, MICROS = 8, 1438, 4  # of the digits that are trained on, and of a step
GATED = ROOT / "tests" / "testbed" / "gated"
RECIPE = f"""
from fgtrain.models.gated import Gated
from fgtrain.recipe import Loader, Snapshots, replace
from recipes.quickstart import RECIPE as QUICKSTART

RECIPE = replace(
    QUICKSTART, model=Gated(classes=10), epochs={EPOCHS}, loader=Loader(workers=0), snapshots=Snapshots(steps=4)
)
"""
OPTIONS = ("--cluster", "lab", "--nodes", "2", "--gpus", "1", "--supervise", "watchdog.floor_s=600")


@pytest.fixture(scope="module")
def lab() -> Iterator[Hosts]:
    netns.skip_without()
    with netns.hosts(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def runs(lab: Hosts, localbucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("ssh")
    clusters = folder / "clusters.toml"
    clusters.write_text(
        f'[lab]\nkind = "ssh"\nhosts = {lab.names!r}\nssh_config = "{lab.config}"\n'
        f'python = "{sys.executable}"\nwork = "{folder}/work"\n'
        f'env = {{ GATE = "{folder}/gate", PYTHONPATH = "{GATED}" }}\n'
    )
    (folder / "recipe.py").write_text(RECIPE)
    with s3_proxy(localbucket.endpoint, lab.address) as proxy:
        env = {**localbucket.env, "AWS_ENDPOINT_URL": proxy.endpoint, "FGLAUNCH_CLUSTERS": str(clusters)}
        env |= {"GATE": f"{folder}/gate", "PYTHONPATH": f"{GATED}{os.pathsep}{ROOT}"}
        runs = Runs(folder, f"s3://{localbucket.bucket}/ssh", **env)
        yield runs
        runs.end()


@pytest.mark.timeout(600)  # three starts of the workers, on whatever machine
def test_run_over_ssh_survives_network_node_and_launcher(runs: Runs, lab: Hosts) -> None:
    gate = hold(runs, steps=10)
    with start(runs, "hurt") as run:
        wait_committed(runs, run)
        cut_and_heal(runs, run, lab)
        kill_node(run, lab)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(240)
        wait_for(lambda: not served(lab), "the connections are gone", 240)
        assert all(lab.running(name, "fgtrain.agent") for name in lab.names)
        with runs.start("resumed", "resume", "hurt") as resumed:
            wait_for(lambda: all(lab.connected(name) for name in lab.names), "the agents are found again", 240)
            gate.unlink()
            assert resumed.wait() == 0, resumed.output() + run.output()
        attempts = [e["attempt"] for e in run.events() if e["event"] == "attempt"]
    assert max(attempts) >= 2
    assert_each_sample_once(runs.samples("hurt"))
    wait_for(lambda: not any(lab.programs(name) for name in lab.names), "nothing is left on the hosts", 240)
    assert not list(Path("/dev/shm").glob("fglaunch-*/hurt-*"))


@pytest.mark.timeout(600)
def test_loss_of_the_first_node_takes_no_other_agent_along(runs: Runs, lab: Hosts) -> None:
    """The store that agents meet in goes with it: it is started on the other node, and the agent there goes on."""
    gate = hold(runs, steps=20)
    with start(runs, "first", "--nodes", "1:2") as run:
        wait_committed(runs, run)
        assert lab.running("node1", "fgtrain.rendezvous")
        [agent] = lab.running("node2", "fgtrain.agent")
        kill_node(run, lab, "node1")
        assert lab.running("node2", "fgtrain.rendezvous")
        assert lab.running("node2", "fgtrain.agent") == [agent]
        gate.unlink()
        assert run.wait() == 0, run.output()
        why = {e["attempt"]: e["why"] for e in run.events() if e["event"] == "phases"}
    assert re.match("the store that agents met in is gone|node1 silent for", why[2])  # whichever is seen first
    assert_each_sample_once(runs.samples("first"))
    wait_for(lambda: not any(lab.programs(name) for name in lab.names), "nothing is left on the hosts", 240)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_first_node_that_nobody_reaches_is_done_without_and_let_in_again(runs: Runs, lab: Hosts) -> None:
    with start(runs, "away", "--nodes", "1:2", "--set", "epochs=400") as run:
        run.wait_snapshot(4)
        before = max(e["attempt"] for e in run.events() if e["event"] == "attempt")
        lab.cut("node1")
        kill_all(lab, "node1")  # nobody is told
        wait_for(lambda: lab.running("node2", "fgtrain.rendezvous"), "the store is started on the other node", 240)
        run.wait_step(1, attempt=before + 1)
        lab.heal("node1")
        wait_for(lambda: [e["world"] for e in run.events() if e["event"] == "attempt"][-2:] == [1, 2], "it is back")
        assert runs.call("stop", "away").returncode == 0
        run.wait()
    wait_for(lambda: not any(lab.programs(name) for name in lab.names), "nothing is left on the hosts", 240)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_run_begins_on_the_host_there_is_and_takes_the_other_in(runs: Runs, lab: Hosts) -> None:
    lab.servers["node2"].stop()
    with start(runs, "grows", "--nodes", "1:2", "--set", "epochs=400") as run:
        run.wait_snapshot(4)
        assert "the run begins with fewer, and takes others in when they are there" in run.output()
        assert lab.programs("node2") == []
        lab.serve("node2")
        wait_for(lambda: [e["world"] for e in run.events() if e["event"] == "attempt"] == [1, 2], "it takes part")
        run.wait_step(1, attempt=2)
        assert "node2 is there now, and takes part" in run.output()
        steps = [e["step"] for e in run.events() if e["event"] == "step"]
        assert steps == sorted(set(steps)), "nothing is repeated"
        assert runs.call("stop", "grows").returncode == 0
        run.wait()
    wait_for(lambda: not any(lab.programs(name) for name in lab.names), "nothing is left on the hosts", 240)


def start(runs: Runs, name: str, *more: str) -> contextlib.AbstractContextManager[LiveRun]:
    return runs.start(name, str(runs.folder / "recipe.py"), *OPTIONS, "--name", name, *more)


def hold(runs: Runs, steps: int) -> Path:
    """Have attempts on two nodes take no more steps than so many, on one node half of them; returns what says so."""
    gate = runs.folder / "gate"
    gate.write_text(str(steps * MICROS // 2))
    return gate


def wait_committed(runs: Runs, run: LiveRun) -> None:
    """Wait until there is a snapshot, which a run that is held does not tell."""

    def committed() -> bool:
        assert run.process.poll() is None, run.output()
        done = runs.call("snapshots", run.name, "--json")
        return done.returncode == 0 and bool(json.loads(done.stdout))

    wait_for(committed, f"{run.name} has a snapshot")


def assert_each_sample_once(lines: str) -> None:
    rows = [json.loads(line) for line in lines.splitlines()]
    turns = [(row["step"], row["micro"]) for row in rows]
    assert turns == [(step, micro) for step in range(max(turns)[0] + 1) for micro in range(MICROS)]
    seen = [tuple(i) for row in rows for i in row["ids"]]
    assert len(seen) == len(set(seen)) == EPOCHS * SAMPLES


def cut_and_heal(runs: Runs, run: LiveRun, lab: Hosts) -> None:
    """Take node2's network away until that is noticed, and give it back: the run goes on."""
    workers = lab.running("node2", "fgtrain.worker")
    assert workers
    lab.cut("node2")
    hold(runs, steps=30)  # that is, go on: into the cut
    wait_for(lambda: "node2 does not answer" in run.output(), "the silence is told", 240)
    assert run.process.poll() is None
    last = last_step(run)
    lab.heal("node2")
    wait_for(lambda: "node2 answers again" in run.output(), "it answers again", 240)
    wait_for(lambda: last_step(run) > last, "training goes on")


def last_step(run: LiveRun) -> int:
    return max(e["step"] for e in run.events() if e["event"] == "step")


def kill_node(run: LiveRun, lab: Hosts, name: str = "node2") -> None:
    """Kill everything that runs on a node, keepers and all: its agent is started again, and a new attempt begins."""
    before = max(e["attempt"] for e in run.events() if e["event"] == "attempt")
    kill_all(lab, name)
    run.wait_step(1, attempt=before + 1)


def kill_all(lab: Hosts, name: str) -> None:
    for pid in lab.programs(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def served(lab: Hosts) -> list[int]:
    """Return what serves connections on the hosts (keepers, which look alike, are sessions of their own)."""
    return [pid for name in lab.names for pid in lab.connected(name)]
