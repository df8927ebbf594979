"""Agents that meet in a real TCPStore: who comes, who leaves, who falls silent, and a store that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousInfo

from fgtrain import membership
from fgtrain.board import NoStore, Settings, find
from fgtrain.endpoint import FILE, Endpoint, forget, tell
from fgtrain.meeting import Alarm, Rendezvous
from fgtrain.membership import Member, Seats
from tests.testbed.runs import ROOT

_TIMEOUT_S = 60.0


class Place:
    """A store to meet in, and agents that are threads of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.port = self.store.port
        self.pool = ThreadPoolExecutor(8)
        self.agents: list[Agent] = []

    def settings(self, number: int, seats: Seats) -> Settings:
        where = Endpoint(f"127.0.0.1:{self.port}", self.folder)
        return Settings(where, "run", Member(f"id{number}", f"node{number}"), seats, 1.0, 0.2)

    def agent(self, number: int, seats: Seats) -> Agent:
        agent = Agent(self, self.settings(number, seats))
        self.agents.append(agent)
        return agent

    def end(self) -> None:
        for agent in self.agents:
            agent.rendezvous.shutdown()
        self.pool.shutdown()


class Agent:
    """One of them; `over` is set when its round is, `lost` when there is no store any more."""

    def __init__(self, place: Place, settings: Settings) -> None:
        self._pool, self.settings = place.pool, settings
        self.over, self.lost = threading.Event(), threading.Event()
        self.rendezvous = Rendezvous(settings, Alarm(self.over.set, self.lost.set))

    def meet(self) -> Future[RendezvousInfo]:
        return self._pool.submit(self.rendezvous.next_rendezvous)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Place]:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # agents tell their workers of a round by it
    place = Place(tmp_path)
    yield place
    place.end()


def ranks(*meetings: Future[RendezvousInfo]) -> list[tuple[int, int]]:
    return [(i.rank, i.world_size) for i in (m.result(_TIMEOUT_S) for m in meetings)]


def test_agents_meet_and_who_leaves_is_left_behind(place: Place) -> None:
    seats = Seats(1, 2)
    a, b = place.agent(0, seats), place.agent(1, seats)
    assert ranks(a.meet(), b.meet()) == [(0, 2), (1, 2)]
    assert not a.over.is_set()
    b.rendezvous.shutdown()
    assert a.over.wait(_TIMEOUT_S)
    assert ranks(a.meet()) == [(0, 1)]


def test_silent_agent_is_struck_out(place: Place) -> None:
    seats = Seats(1, 2)
    silent = place.settings(1, seats)
    board = find(silent.where, 0.0)
    board.beat(silent.me.id)  # once, and never again
    board.change(lambda m: membership.come(m, silent.me, seats))
    a = place.agent(0, seats)
    assert ranks(a.meet()) == [(0, 2)]
    assert a.over.wait(_TIMEOUT_S)
    assert "node1 silent" in board.read().why
    assert ranks(a.meet()) == [(0, 1)]


def test_newcomer_is_announced_and_a_spare_is_not(place: Place) -> None:
    seats = Seats(1, 2)
    a = place.agent(0, seats)
    assert ranks(a.meet()) == [(0, 1)]
    b = place.agent(1, seats)
    coming = b.meet()
    waiting = threading.Event()
    for _ in range(600):
        if a.rendezvous.num_nodes_waiting() == 1:
            break
        waiting.wait(0.1)
    assert a.rendezvous.num_nodes_waiting() == 1
    assert ranks(a.meet(), coming) == [(0, 2), (1, 2)]
    spare = place.agent(2, seats).meet()
    b.rendezvous.shutdown()
    assert a.over.wait(_TIMEOUT_S)
    assert ranks(a.meet(), spare) == [(0, 2), (1, 2)]


@contextlib.contextmanager
def store_process(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """Have a store in a process of its own, where agents are told to meet from now on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place.port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "fgtrain.rendezvous", "--port", str(place.port)]
    with subprocess.Popen(argv, cwd=ROOT) as store:
        try:
            yield store
        finally:
            store.kill()


@pytest.mark.train
def test_agent_whose_store_does_not_answer_while_workers_work_goes_to_another(place: Place) -> None:
    with store_process(place) as store:
        a = place.agent(0, Seats(1, 1))
        assert ranks(a.meet()) == [(0, 1)]
        store.send_signal(signal.SIGSTOP)
        assert a.over.wait(_TIMEOUT_S), "nobody trains on who cannot tell whether the others do"
        other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        tell(place.folder, f"127.0.0.1:{other.port}")
        assert ranks(a.meet()) == [(0, 1)]
        assert not a.lost.is_set()


@pytest.mark.train
def test_agent_that_waits_for_an_answer_itself_begins_anew(place: Place) -> None:
    with store_process(place) as store:
        a = place.agent(0, Seats(2, 2))
        alone = a.meet()
        store.send_signal(signal.SIGSTOP)
        assert a.lost.wait(_TIMEOUT_S)
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    tell(place.folder, f"127.0.0.1:{other.port}")
    find(a.settings.where, 0.0).change(membership.close)
    with pytest.raises(RendezvousClosedError):
        alone.result(_TIMEOUT_S)


@pytest.mark.train
def test_agents_whose_store_dies_meet_again_in_the_one_that_they_are_told_of(place: Place) -> None:
    seats = Seats(1, 3)
    with store_process(place) as store:
        a, b, gone = (place.agent(i, seats) for i in range(3))
        assert sorted(ranks(a.meet(), b.meet(), gone.meet())) == [(0, 3), (1, 3), (2, 3)]
        store.kill()
        assert a.over.wait(_TIMEOUT_S), "its workers may hang in a collective"
        meetings = a.meet(), b.meet()
        other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        tell(place.folder, f"127.0.0.1:{other.port}", ["node2"])
        assert ranks(*meetings) == [(0, 2), (1, 2)], "nobody waits for who is known to be gone"
    there = find(a.settings.where, 0.0).read()
    assert (there.round, there.why) == (1, "the store that agents met in is gone")
    assert not a.lost.is_set()


def test_agent_that_nobody_tells_of_another_store_gives_up(place: Place) -> None:
    where = Endpoint("127.0.0.1:1", place.folder)
    with pytest.raises(NoStore, match="no store to meet in at 127.0.0.1:1: "):
        find(where, 0.0)


def test_new_life_of_an_agent_begins_where_it_was_started_to(tmp_path: Path) -> None:
    where = Endpoint("[fe80::1]:2900", tmp_path)
    assert where.now() == ("fe80::1", 2900, frozenset())
    tell(tmp_path, "node2:1", ["node1", "node3"])
    assert where.now() == ("node2", 1, {"node1", "node3"})
    forget(tmp_path)
    assert where.now() == ("fe80::1", 2900, frozenset())
    assert not (tmp_path / FILE).exists()


def test_spare_of_work_that_is_done_is_told(place: Place) -> None:
    seats = Seats(1, 1)
    a = place.agent(0, seats)
    assert ranks(a.meet()) == [(0, 1)]
    spare = place.agent(1, seats).meet()
    a.rendezvous.set_closed()
    with pytest.raises(RendezvousClosedError):
        spare.result(_TIMEOUT_S)
    assert not a.over.is_set()
