"""Terms of office: one supervisor acts, whoever took the highest number; also where a vendor ignores conditions."""

from __future__ import annotations

import itertools
import threading

import msgspec
import pytest

from fgtrain.plan import World
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.takeover import last_term, take_office

NUMBERS = itertools.count()


@pytest.fixture
def runs() -> RunStore:
    return RunStore(open_store(f"memory://takeover-{next(NUMBERS)}"), "run")


def test_run_without_a_supervisor_has_no_term(runs: RunStore) -> None:
    assert last_term(runs) is None


def test_newer_supervisor_fences_the_older(runs: RunStore) -> None:
    first = take_office(runs, "lab", World(2, 1))
    assert first.held()
    second = take_office(runs, "lab", World(2, 1))
    assert (first.held(), second.held()) == (False, True)
    first.record(endpoint="too:late")
    assert second.held()
    newest = last_term(runs)
    assert newest is not None
    assert (newest.number, newest.endpoint) == (2, "")


def test_of_many_at_once_one_holds_the_office(runs: RunStore) -> None:
    offices = []
    threads = [
        threading.Thread(target=lambda: offices.append(take_office(RunStore(runs.store, "run"), "lab", World(1, 1))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert sorted(o.term.number for o in offices) == list(range(1, 9))
    assert [o.term.number for o in offices if o.held()] == [8]


def test_where_a_vendor_lets_two_take_one_number_only_one_holds_it(runs: RunStore) -> None:
    first = take_office(runs, "lab", World(1, 1))
    other = msgspec.structs.replace(first.term, token="somebody else's")
    runs.write("supervisors/00001.json", other)  # what a create without its condition does
    assert not first.held()


def test_record_is_read_back_by_the_next(runs: RunStore) -> None:
    office = take_office(runs, "lab", World(2, 4))
    office.record(endpoint="10.0.0.1:29400", agents={"a": 7})
    assert last_term(runs) == office.term
    assert office.term.agents == {"a": 7}
