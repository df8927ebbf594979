"""Agents that meet in a real TCPStore: who comes, who leaves, who falls silent, and a store that dies."""

from __future__ import annotations

import contextlib
import os
import socket
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
from tests.testbed.runs import wait_for

_TIMEOUT_S = 240.0
_NEVER_S = 240.0  # longer than any stall of this machine: nobody is given up, no round begins without somebody


class Place:
    """A store to meet in, and agents that are threads of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.port = self.store.port
        self.pool = ThreadPoolExecutor(8)
        self.agents: list[Agent] = []

    def settings(
        self, number: int, seats: Seats, *, detect_s: float = _NEVER_S, last_call_s: float = _NEVER_S
    ) -> Settings:
        where = Endpoint(f"127.0.0.1:{self.port}", self.folder)
        return Settings(where, "run", Member(f"id{number}", f"node{number}"), seats, detect_s, last_call_s)

    def agent(self, number: int, seats: Seats, *, detect_s: float = _NEVER_S, last_call_s: float = _NEVER_S) -> Agent:
        agent = Agent(self, self.settings(number, seats, detect_s=detect_s, last_call_s=last_call_s))
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
    a = place.agent(0, seats, detect_s=1.0)
    assert ranks(a.meet()) == [(0, 2)]
    assert a.over.wait(_TIMEOUT_S)
    assert "node1 silent" in board.read().why
    assert ranks(a.meet()) == [(0, 1)]


def test_newcomer_is_announced_and_a_spare_is_not(place: Place) -> None:
    seats = Seats(1, 2)
    a = place.agent(0, seats, last_call_s=0.0)
    assert ranks(a.meet()) == [(0, 1)]
    b = place.agent(1, seats)
    coming = b.meet()
    wait_for(lambda: a.rendezvous.num_nodes_waiting() == 1, "it is announced")
    assert ranks(a.meet(), coming) == [(0, 2), (1, 2)]
    board = find(a.settings.where, 0.0)
    spare = place.agent(2, seats).meet()
    wait_for(lambda: board.read().waiting, "the spare is there")
    assert a.rendezvous.num_nodes_waiting() == 0
    b.rendezvous.shutdown()
    assert a.over.wait(_TIMEOUT_S)
    assert ranks(a.meet(), spare) == [(0, 2), (1, 2)]


class Relay:
    """Stands between agents and their store, so that it can fall silent as a stopped process does, or die.

    A process of its own would do so too, but could also be late by itself, where nobody wants it.
    """

    def __init__(self, to: int) -> None:
        self._to, self._silent = to, threading.Event()
        self._open = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._open[0].getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def fall_silent(self) -> None:
        """Pass nothing on any more; connections stay, and new ones are taken."""
        self._silent.set()

    def die(self) -> None:
        """Close all connections, and take no more."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._open[0].accept()[0], socket.create_connection(("127.0.0.1", self._to), _TIMEOUT_S)
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self._silent.is_set():
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(place: Place) -> Iterator[Relay]:
    """The store where agents are told to meet from now on."""
    relay = Relay(place.port)
    place.port = relay.port
    yield relay
    relay.die()


def test_agent_whose_store_does_not_answer_while_workers_work_goes_to_another(place: Place, relay: Relay) -> None:
    a = place.agent(0, Seats(1, 1), detect_s=1.0)
    assert ranks(a.meet()) == [(0, 1)]
    relay.fall_silent()
    assert a.over.wait(_TIMEOUT_S), "nobody trains on who cannot tell whether the others do"
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    tell(place.folder, f"127.0.0.1:{other.port}")
    assert ranks(a.meet()) == [(0, 1)]
    assert not a.lost.is_set()


def test_agent_that_waits_for_an_answer_itself_begins_anew(place: Place, relay: Relay) -> None:
    a = place.agent(0, Seats(2, 2), detect_s=1.0)
    alone = a.meet()
    relay.fall_silent()
    assert a.lost.wait(_TIMEOUT_S)
    relay.die()
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    tell(place.folder, f"127.0.0.1:{other.port}")
    find(a.settings.where, 0.0).change(membership.close)
    with pytest.raises(RendezvousClosedError):
        alone.result(_TIMEOUT_S)


def test_agents_whose_store_dies_meet_again_in_the_one_that_they_are_told_of(place: Place, relay: Relay) -> None:
    seats = Seats(1, 3)
    a, b, gone = (place.agent(i, seats) for i in range(3))
    assert sorted(ranks(a.meet(), b.meet(), gone.meet())) == [(0, 3), (1, 3), (2, 3)]
    relay.die()
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
