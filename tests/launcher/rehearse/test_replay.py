"""A cluster whose nodes come and go: what starts when, what is killed when. Real processes, on the local cluster."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Command, Node
from fgtrain.snapshot.memory import memory_folder
from launcher.rehearse.replay import RehearsalCluster, Replay
from launcher.rehearse.slots import Moves
from tests.fgtrain.test_runstore import run_file
from tests.testbed.runs import wait_for

SLEEP = Command("agent", (sys.executable, "-c", "import time; time.sleep(600)"), {})
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalCluster]:
    monkeypatch.setenv("FGLAUNCH_MEMORY", str(tmp_path / "memory"))
    found = RehearsalCluster(tmp_path, tmp_path, run_file("r"))
    for node in found.nodes("r", 2):
        found.make_ready(node)
    yield found
    for node in found.nodes("r", 2):
        found.lose(node)


def node(stage: RehearsalCluster, number: int = 0) -> Node:
    return stage.nodes("r", 2)[number]


def remember(node: Node) -> Path:
    folder = memory_folder("r", Path(node.folder), run_file("r").identity)
    folder.mkdir(parents=True)
    return folder


def test_program_starts_when_its_node_comes(stage: RehearsalCluster) -> None:
    process = stage.start(node(stage), SLEEP)
    assert (process.pid, process.poll()) == (0, None)
    stage.come(node(stage))
    assert process.pid > 1
    assert process.poll() is None
    assert stage.start(node(stage), SLEEP).pid > 1  # it is there now


def test_program_that_was_ended_before_its_node_came_never_starts(stage: RehearsalCluster) -> None:
    killed, asked = stage.start(node(stage), SLEEP), stage.start(node(stage), SLEEP)
    killed.kill()
    asked.terminate()
    stage.come(node(stage))
    assert [(p.pid, p.wait(0.0)) for p in (killed, asked)] == [(0, -9), (0, -15)]


def test_loss_kills_the_node_and_forgets_its_memory_only(stage: RehearsalCluster) -> None:
    for number in (0, 1):
        stage.come(node(stage, number))
    memories = [remember(node(stage, number)) for number in (0, 1)]
    lost, other = (stage.start(node(stage, number), SLEEP) for number in (0, 1))
    meeting = stage.start(node(stage), SLEEP._replace(name="rendezvous"))
    stage.lose(node(stage))
    assert lost.poll() == -9
    assert (other.poll(), meeting.poll()) == (None, None)
    assert [m.exists() for m in memories] == [False, True]
    assert stage.start(node(stage), SLEEP).pid == 0
    meeting.kill()


def test_notice_asks_and_the_loss_after_it_spares_the_node_that_took_over(
    stage: RehearsalCluster, tmp_path: Path
) -> None:
    stage.come(node(stage))
    leaving = stage.start(node(stage), Command("agent", (sys.executable, "-c", STUBBORN), {}))
    wait_for(lambda: b"ready" in stage.read(node(stage), "agent.log", 0), "the program runs", 240)
    memory = remember(node(stage))
    asked = stage.notice(node(stage))
    assert [p.pid for p in asked] == [leaving.pid]
    after = stage.start(node(stage), SLEEP)
    assert after.pid == 0
    stage.come(node(stage))
    stage.lose(node(stage), asked)
    assert leaving.poll() == -9
    assert after.poll() is None
    assert memory.exists()


def test_replay_plays_in_order_and_ends(stage: RehearsalCluster) -> None:
    nodes, over = stage.nodes("r", 2), threading.Event()
    first, second = stage.start(nodes[0], SLEEP), stage.start(nodes[1], SLEEP)
    moves = [Moves(0.0, (), (0, 1)), Moves(0.05, (0,), ()), Moves(0.1, (1,), (0,))]
    replay = Replay(stage, nodes, moves, 0.2, 0.0, over.set)
    replay.start()
    assert over.wait(240)
    again = stage.start(nodes[0], SLEEP)
    assert (first.poll(), second.poll(), again.poll()) == (-9, -9, None)
    assert again.pid > 1
    replay.stop()
    assert replay.failed is None


def test_replay_that_is_stopped_does_nothing_more(stage: RehearsalCluster) -> None:
    nodes, over = stage.nodes("r", 2), threading.Event()
    process = stage.start(nodes[0], SLEEP)
    replay = Replay(stage, nodes, [Moves(0.0, (), (0,)), Moves(300.0, (0,), ())], 600.0, 0.0, over.set)
    replay.start()
    wait_for(lambda: process.pid, "the first move", 240)
    replay.stop()
    assert process.poll() is None
    assert not over.is_set()


def test_failure_in_the_replay_ends_the_rehearsal(stage: RehearsalCluster, tmp_path: Path) -> None:
    nodes, over = stage.nodes("r", 2), threading.Event()
    stage.start(nodes[0], Command("agent", (str(tmp_path / "nothing"),), dict(os.environ)))
    replay = Replay(stage, nodes, [Moves(0.0, (), (0,))], 600.0, 0.0, over.set)
    replay.start()
    assert over.wait(240)
    replay.stop()
    assert "cannot start" in str(replay.failed)
