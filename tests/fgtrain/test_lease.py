"""When a node's work ends by itself: the decision, and a real process that goes by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fgtrain import lease
from fgtrain.lease import Beat, Heard, Lease
from fgtrain.limits import Limits, Spend
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.runs import ROOT


def heard(updated: float, limits: Limits | None = None, spend: Spend | None = None, since: int = 0) -> Heard:
    return Heard(Beat(updated, "running", since), limits or Limits(), spend or Spend())


def test_heartbeat_renews_the_lease_whatever_its_clock_says() -> None:
    found = Lease(100.0, 0.0)
    for now in range(0, 1000, 90):
        assert found.verdict(heard(updated=-5e9 + now), float(now)) is None


def test_silence_ends_the_work() -> None:
    found = Lease(100.0, 0.0)
    assert found.verdict(heard(1.0), 10.0) is None
    assert found.verdict(heard(1.0), 109.0) is None  # the same beat as before is none
    reason = found.verdict(heard(1.0), 110.0)
    assert reason is not None
    assert "100 s" in reason


def test_store_that_never_answers_is_silence_too() -> None:
    found = Lease(100.0, 0.0)
    assert found.verdict(None, 99.0) is None
    assert found.verdict(None, 100.0) is not None


def test_store_that_answers_again_in_time_is_enough() -> None:
    found = Lease(100.0, 0.0)
    assert found.verdict(heard(1.0), 5.0) is None
    assert found.verdict(None, 100.0) is None
    assert found.verdict(heard(2.0), 104.0) is None
    assert found.verdict(None, 203.0) is None


def test_heartbeat_of_a_supervisor_that_goes_on_without_this_node_ends_its_work_at_once() -> None:
    found = Lease(100.0, 0.0, term=3)
    assert found.verdict(heard(1.0, since=1), 10.0) is None  # it has taken over what number 1 to 3 have started
    reason = found.verdict(heard(2.0, since=4), 20.0)
    assert reason is not None
    assert "supervisor 4 goes on" in reason


def test_what_a_later_supervisor_goes_on_without_is_superseded(tmp_path: Path) -> None:
    runs = RunStore(open_store(f"file://{tmp_path}"), "r")
    environ = lease.variables(100.0, runs.store.url, "r", 2)
    assert not lease.superseded(runs, environ)
    for since, expected in ((0, False), (1, False), (2, False), (3, True)):
        runs.write("status.json", Beat(1.0, "running", since))
        assert lease.superseded(runs, environ) is expected
    assert not lease.superseded(runs, {})  # it has no lease: it ends with its supervisor


def test_time_and_money_end_the_work_when_nobody_else_does() -> None:
    limits, spend = Limits(max_hours=1.0), Spend(seconds=3500.0)
    found = Lease(900.0, 0.0)
    assert found.verdict(heard(1.0, limits, spend), 0.0) is None
    assert found.verdict(heard(1.0, limits, spend), 90.0) is None
    assert found.verdict(heard(1.0, limits, spend), 101.0) == "--max-hours 1 is reached after 1.00 h"
    money, spent = Limits(max_cost=10.0), Spend(cost=9.0, per_s=0.01)
    found = Lease(900.0, 0.0)
    assert found.verdict(heard(1.0, money, spent), 0.0) is None
    assert found.verdict(heard(1.0, money, spent), 99.0) is None
    assert found.verdict(heard(1.0, money, spent), 101.0) == "--max-cost 10 is reached: 10.01 so far"


def test_limit_is_the_supervisors_as_long_as_it_lives() -> None:
    limits, spend = Limits(max_hours=1.0), Spend(seconds=7200.0)
    found = Lease(900.0, 0.0)
    for beat in range(10):
        assert found.verdict(heard(float(beat), limits, spend), beat * 50.0) is None


def test_without_a_lease_nothing_watches() -> None:
    assert lease.watch({}) is None


def test_process_without_a_supervisor_ends_by_itself(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/a store"
    RunStore(open_store(store), "r").write("status.json", Beat(1.0, "running", 3))
    code = "import time; from fgtrain import lease; lease.watch(); time.sleep(600)"
    for lease_s, term, word in ((0.5, 3, "no word from the supervisor"), (900.0, 2, "supervisor 3 goes on")):
        env = os.environ | {"PYTHONPATH": str(ROOT)} | lease.variables(lease_s, store, "r", term)
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == -15
        assert f"lease: {word}" in done.stderr
