"""The real launcher over two hosts that SSH leads to, with agents that only play training: quick, and without torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import netns
from tests.testbed.netns import Hosts
from tests.testbed.runs import LiveRun, Runs, wait_for

AGENT = """#!{python}
import json, os, pathlib, signal, sys, time
if sys.argv[1] == "-c":  # what serves the connection is real
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if sys.argv[2] == "fgtrain.rendezvous":
    signal.pause()
if sys.argv[2] != "fgtrain.agent":
    sys.exit(0)
store, run, folder = sys.argv[-3:]
run_folder = pathlib.Path(store.removeprefix("file://"), "runs", run)
steps = json.loads((run_folder / "run.json").read_text())["plan"]["steps"]
done = pathlib.Path({done!r})
with pathlib.Path(folder, "events.jsonl").open("a", buffering=1) as events:
    print(json.dumps({{"event": "note", "text": "agent on " + folder, "time": time.time()}}), file=events)
while not done.exists():
    time.sleep(0.05)
result = {{"step": steps, "weights": "", "last": {{}}, "best": {{}}, "bad_images": 0}}
part = run_folder / f"result-{{os.getpid()}}"
part.write_text(json.dumps(result))
part.replace(run_folder / "result.json")
"""

PATIENT = ("--supervise", "check.level=off", "--supervise", "silent_s=0")
"""No host is given up, however long it takes to heal it."""


@pytest.fixture
def lab() -> Iterator[Hosts]:
    netns.skip_without()
    with netns.hosts(2) as hosts:
        yield hosts


def played(there: Hosts, folder: Path, **clusters: list[str]) -> Runs:
    """Return runs on clusters of these hosts, where agents are played and end once there is a file `done`."""
    python = folder / "python"
    python.write_text(AGENT.format(python=sys.executable, done=str(folder / "done")))
    python.chmod(0o755)
    same = f'ssh_config = "{there.config}"\npython = "{python}"\nshared = true\nwork = "{folder}/work"\n'
    texts = (f'[{name}]\nkind = "ssh"\nhosts = {hosts!r}\n{same}' for name, hosts in clusters.items())
    (folder / "clusters.toml").write_text("".join(texts))
    return Runs(folder, FGLAUNCH_CLUSTERS=str(folder / "clusters.toml"))


def test_hosts_outlive_network_and_launcher(lab: Hosts, tmp_path: Path) -> None:
    runs, done = played(lab, tmp_path, lab=lab.names), tmp_path / "done"
    words = ("--cluster", "lab", "--nodes", "2", "--name", "played", *PATIENT)
    with runs.start("played", "recipes/quickstart.py", *words) as run:
        wait_for(lambda: len(noted(run)) == 2, "both agents are up", 240)
        agents = pids(lab)
        cut_and_heal(run, lab)
        assert pids(lab) == agents, "who is silent is not dead"
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(240)
        wait_for(lambda: not any(lab.connected(name) for name in lab.names), "the connections are gone", 240)
        assert pids(lab) == agents, "agents outlive the launcher"
        with runs.start("played", "resume", "played") as heir:
            wait_for(lambda: "taking over" in heir.output(), "the agents are found", 240)
            assert pids(lab) == agents, "they are taken over, not started again"
            for pid in lab.programs("node2"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(noted(heir)) == 3, "node2 has another agent", 240)
            assert pids(lab)["node1"] == agents["node1"], "only what was lost is replaced"
            done.touch()
            assert heir.wait(240) == 0, heir.output()
    wait_for(lambda: not any(lab.programs(name) for name in lab.names), "nothing is left on the hosts", 240)


def test_run_that_is_resumed_on_another_cluster_leaves_nothing_on_the_old_one(lab: Hosts, tmp_path: Path) -> None:
    runs = played(lab, tmp_path, old=["node1"], new=["node2"])
    words = ("--cluster", "old", "--name", "played", *PATIENT)
    with runs.start("played", "recipes/quickstart.py", *words) as run:
        wait_for(lambda: len(noted(run)) == 1, "the agent is up", 240)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(240)
        assert pids(lab)["node1"]
        with runs.start("played", "resume", "played", "--cluster", "new") as heir:
            wait_for(lambda: pids(lab)["node2"], "the new cluster has an agent", 240)
            assert not pids(lab)["node1"], heir.output()
            wait_for(lambda: not lab.programs("node1"), "nothing is left on the old one", 240)
            (tmp_path / "done").touch()
            assert heir.wait(240) == 0, heir.output()
            assert "note: " not in heir.output()


def cut_and_heal(run: LiveRun, lab: Hosts) -> None:
    lab.cut("node2")
    wait_for(lambda: "node2 does not answer" in run.output(), "the silence is told", 240)
    lab.heal("node2")
    wait_for(lambda: "node2 answers again" in run.output(), "it answers again", 240)
    assert run.process.poll() is None


def noted(run: LiveRun) -> list[str]:
    """Return the agents that have begun."""
    return [e["text"] for e in run.events() if e["event"] == "note"]


def pids(lab: Hosts) -> dict[str, list[int]]:
    return {name: lab.running(name, "fgtrain.agent") for name in lab.names}
