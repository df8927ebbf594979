"""Our side of the talk with SkyPilot's driver."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import ClusterError
from cluster._sky_link import Driver

PROGRAM = """\
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    print("SkyPilot says much", file=sys.stderr, flush=True)
    if request["do"] == "die":
        sys.exit("out of memory")
    if request["do"] == "refuse":
        answer = {"error": "no access:\\n  run sky check"}
    else:
        answer = {"value": [request["do"], request.get("x"), os.getpid()]}
    print(json.dumps({"id": request["id"], **answer}), flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    driver = Driver(Path(sys.executable), tmp_path / "logs" / "log", program)
    yield driver
    driver.close()


def test_answers_come_from_one_process(driver: Driver) -> None:
    first, second = driver.ask("a", x=1), driver.ask("b", x="é")
    assert first[:2] == ["a", 1]
    assert second[:2] == ["b", "é"]
    assert first[2] == second[2]


def test_threads_take_turns(driver: Driver) -> None:
    said: list[list[object]] = []
    threads = [threading.Thread(target=lambda x=x: said.append(driver.ask("a", x=x))) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert sorted(x for _, x, _ in said) == list(range(8))  # type: ignore[type-var]


def test_refusal_is_one_line(driver: Driver) -> None:
    with pytest.raises(ClusterError, match="^SkyPilot: no access: run sky check$"):
        driver.ask("refuse")


def test_driver_that_dies_is_told_with_its_last_words_and_started_again(driver: Driver, tmp_path: Path) -> None:
    before = driver.ask("a")
    with pytest.raises(ClusterError, match=r"driver died \(.*log\): .*out of memory$"):
        driver.ask("die")
    assert driver.ask("a")[2] != before[2]


def test_nothing_is_left_of_a_driver_that_is_closed(driver: Driver) -> None:
    pid = driver.ask("a")[2]
    driver.close()
    assert not Path(f"/proc/{pid}").exists()
    driver.close()  # no error


def test_interpreter_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="driver"):
        Driver(tmp_path / "no-python", tmp_path / "log").ask("hello")
