"""Many SSH hosts: what is asked of all of them is on its way to all of them at once. Connections are only played."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError
from cluster._abreast import Abreast
from cluster._ssh_client import Target
from cluster._ssh_link import Answer
from cluster.local import LocalCluster
from cluster.sky import SkyCluster
from cluster.slurm import SlurmCluster
from cluster.ssh import SshCluster, open_cluster
from fgtrain.plan import World
from launcher import precheck
from launcher.abreast import each
from launcher.clock import SystemClock
from launcher.feed import Feed
from launcher.fleet import Fleet, Seat, clear
from launcher.ownership import owner_of
from launcher.supervision import Check
from launcher.takeover import Term
from tests.fgtrain.test_runstore import run_file
from tests.testbed.fake_training import FakeClock, FakeCluster

HOSTS = 64
WAIT_S = 240.0
RECORD = {"pid": 7, "token": "t"}
ANSWERS: dict[str, Any] = {
    "hello": {"home": "/h", "reached": "10.0.0.1", "interfaces": {}, "cores": 8, "gpus": []},
    "kill": {"left": [], "code": -15, "spelled": ""},
    "start": RECORD,
}


class Net:
    """The hosts. A request is answered when the same one is on its way to every host; `rounds` counts how often."""

    def __init__(self) -> None:
        self.rounds: Counter[str] = Counter()
        self.links: dict[str, PlayedLink] = {}
        self.say: Callable[[str, str], Answer | None] = lambda host, what: None
        self.alive = True
        self._barriers: dict[str, threading.Barrier] = defaultdict(self._barrier)
        self._lock = threading.Lock()

    def _barrier(self) -> threading.Barrier:
        return threading.Barrier(HOSTS, timeout=WAIT_S)

    def link(self, target: Target) -> PlayedLink:
        with self._lock:
            return self.links.setdefault(target.host, PlayedLink(self, target))

    def ask(self, host: str, what: str) -> Answer:
        with self._lock:
            barrier = self._barriers[what]
        if barrier.wait() == 0:
            self.rounds[what] += 1
        if said := self.say(host, what):
            return said
        action = what.split()[0]
        value = (RECORD if self.alive else None) if action == "find" else ANSWERS.get(action)
        if action == "status":
            value = None if self.alive else -15
        self.alive &= action not in ("terminate", "kill")
        return Answer(value, b"")


class PlayedLink:
    def __init__(self, net: Net, target: Target) -> None:
        self.net, self.target = net, target

    def ask(self, action: str, body: bytes = b"", **arguments: Any) -> Answer:
        about = arguments.get("name") or Path(arguments.get("path", "")).name
        return self.net.ask(self.target.host, f"{action} {about}".strip())

    glance = ask

    def silence_s(self) -> float:
        return 0.0


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    net = Net()
    monkeypatch.setattr("cluster.ssh.link_to", net.link)
    return net


@pytest.fixture
def cluster(net: Net, tmp_path: Path) -> SshCluster:
    settings = {"hosts": [f"gpu{i}" for i in range(HOSTS)], "python": "/python", "project": "/project"}
    return open_cluster(settings, tmp_path, tmp_path)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def fleet(net: Net, cluster: SshCluster, notes: list[str]) -> Fleet:
    """All agents are started, and nothing is counted yet."""
    made = Fleet(run_file(), "s3://b/x", cluster, World(HOSTS, 1), SystemClock(), note=notes.append)
    made.seats = [Seat(node) for node in cluster.nodes("run", HOSTS)]
    assert made.start_agents(made.seats) == [None] * HOSTS
    # What earlier agents there may be is killed: one was found, and none when asked again.
    assert net.rounds.pop("hello") == net.rounds.pop("start agent") == net.rounds.pop("kill agent") == 1
    net.rounds.clear()
    net.alive = True
    return made


def test_look_at_all_agents_is_one_round(net: Net, fleet: Fleet) -> None:
    assert fleet.codes() == {f"gpu{i}": None for i in range(HOSTS)}
    assert net.rounds == {"status agent": 1}


def test_look_at_all_files_is_one_round_each(net: Net, cluster: SshCluster, fleet: Fleet) -> None:
    feed = Feed(cluster)
    assert list(feed.events(fleet.nodes)) == []
    assert feed.agent_lines(fleet.nodes) == feed.beats(fleet.nodes) == [[]] * HOSTS
    assert net.rounds == {"read events.jsonl": 1, "read agent.log": 1, "read pulse": 1}


def test_end_is_a_round_for_each_of_its_steps(net: Net, fleet: Fleet) -> None:
    fleet.stop(WAIT_S)
    fleet.kill()
    fleet.free_memory()
    assert net.rounds == {
        "terminate agent": 1,
        "status agent": 1,
        "kill agent": 1,
        "start forget": 1,
        "status forget": 1,
    }


def test_take_over_finds_all_agents_in_one_round(net: Net, cluster: SshCluster, fleet: Fleet) -> None:
    term = Term(
        number=1,
        token="t",
        host="laptop",
        pid=1,
        process="p",
        started=0.0,
        cluster="lab",
        world=World(HOSTS, 1),
        endpoint="10.0.0.1:29500",
        nodes=tuple(fleet.nodes),
    )
    assert fleet.adopt(term)
    assert fleet.agent_pids() == {f"gpu{i}": RECORD["pid"] for i in range(HOSTS)}
    assert net.rounds == {"read owner.json": 1, "find agent": 1, "find rendezvous": 1}


def test_what_an_earlier_supervisor_left_is_killed_everywhere_at_once(
    net: Net, cluster: SshCluster, fleet: Fleet
) -> None:
    net.alive = False
    clear(cluster, owner_of(run_file(), "s3://b/x"), fleet.nodes)
    assert net.rounds == {"read owner.json": 1, "find agent": 1, "find rendezvous": 1}


def test_ranks_write_their_stacks_everywhere_at_once(net: Net, fleet: Fleet) -> None:
    assert list(fleet.unhang({})) == []
    assert net.rounds == {"start unhang": 1}


def test_nodes_are_checked_in_few_rounds(net: Net, cluster: SshCluster, fleet: Fleet) -> None:
    net.alive = False
    seen = precheck.examine(cluster, fleet.nodes, "", Check(), FakeClock(), lambda: False, {})
    assert len(seen) == HOSTS
    assert net.rounds == {"start check": 1, "status check": 1, "read check.json": 1, "read check.log": 1}


def test_host_that_does_not_answer_does_not_hold_up_the_looks_at_others(net: Net, fleet: Fleet) -> None:
    answered, others = threading.Semaphore(0), HOSTS - 1

    def say(host: str, what: str) -> Answer:
        if host != "gpu0":
            answered.release()
            return Answer(0, b"")
        for _ in range(others):
            assert answered.acquire(timeout=WAIT_S), "it was waited for before others were asked"
        return Answer(None, b"")

    net.say = say
    assert fleet.codes() == {"gpu0": None} | {f"gpu{i}": 0 for i in range(1, HOSTS)}


def test_events_come_in_the_order_of_nodes_whoever_answers_first(net: Net, cluster: SshCluster, fleet: Fleet) -> None:
    turns = [threading.Event() for _ in range(HOSTS + 1)]
    turns[HOSTS].set()

    def say(host: str, what: str) -> Answer:
        number = int(host.removeprefix("gpu"))
        assert turns[number + 1].wait(WAIT_S), "the last answers first"
        turns[number].set()
        return Answer(None, b'{"event": "note", "text": "%d"}\n' % number)

    net.say = say
    assert [event["text"] for event in Feed(cluster).events(fleet.nodes)] == [str(i) for i in range(HOSTS)]


def test_what_refuses_is_told_in_the_order_of_nodes_and_others_go_on(net: Net, fleet: Fleet, notes: list[str]) -> None:
    def say(host: str, what: str) -> Answer | None:
        if host in ("gpu3", "gpu40") and what == "status agent":
            raise ClusterError(f"{host}: no disk")
        return None

    net.say = say
    codes = fleet.codes()
    assert {name for name, code in codes.items() if code is not None} == {"gpu3", "gpu40"}
    assert notes == [f"gpu{i} is taken for lost: gpu{i}: no disk" for i in (3, 40)]


def test_clusters_over_a_network_are_asked_at_once_and_no_others() -> None:
    assert [c.name for c in (SshCluster, SkyCluster, SlurmCluster, LocalCluster) if issubclass(c, Abreast)] == [
        "ssh",
        "sky",
    ]


def test_cluster_that_cannot_be_asked_at_once_is_asked_by_one_thread_in_order() -> None:
    asked: list[int] = []

    def ask(number: int) -> str:
        assert threading.current_thread() is threading.main_thread()
        asked.append(number)
        if number == 1:
            raise ClusterError("no")
        return str(number)

    said = each(FakeCluster(FakeClock(), 3), ask, range(3))
    assert (asked, [str(one) for one in said]) == ([0, 1, 2], ["0", "no", "2"])
