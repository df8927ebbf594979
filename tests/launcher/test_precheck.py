"""The check of nodes: what it finds here, and who is blamed for what. The judging is pure."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fgtrain import check as program
from launcher.precheck import Seen, judge
from launcher.supervision import Check
from tests.testbed.addresses import has_ipv6

FINE = {"time": 100.0, "writable": True, "disk_free": 1 << 40, "shm_free": 1 << 30, "device_files": 0}


def seen(**changes: Any) -> Seen:
    return Seen(FINE | changes, 99.0, 101.0)


def blamed(gpus: int = 1, **changes: Any) -> list[str]:
    return judge({"a": seen(**changes)}, Check(), gpus, ["a"]).get("a", [])


def test_node_that_is_well_is_not_blamed() -> None:
    assert blamed() == []
    assert blamed(shm_free=None) == []
    assert blamed(devices=[{"name": "cpu", "error": None}]) == []
    assert blamed(gpus=2, device_files=8, devices=[{"name": f"cuda:{i}", "error": None} for i in range(2)]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"writable": False}, "its working folder cannot be written"),
        ({"disk_free": 1 << 20}, "its disk has 0.00 GiB free, less than 0.5"),
        ({"shm_free": 0}, "its /dev/shm is full"),
        ({"time": 300.0}, "its clock is 199 s ahead"),
        ({"time": 0.0}, "its clock is 99 s behind"),
        ({"device_files": 1}, "it has 1 GPUs of 2"),
        (
            {"devices": [{"name": "cuda:0", "error": "3 of 9 values of a matrix product are wrong"}] * 2},
            "3 of 9 values",
        ),
        ({"device_files": 2, "devices": [{"name": "cpu", "error": None}]}, "torch sees 0 of its 2 GPUs"),
        ({"devices": [{"name": "cuda:0", "error": None}]}, "it has 1 GPUs of 2"),
    ],
)
def test_trouble_is_named(changes: dict[str, Any], words: str) -> None:
    problems = blamed(gpus=2, **changes)
    assert problems
    assert all(words in p for p in problems)


def test_clock_is_only_judged_as_far_as_it_could_be_read() -> None:
    late = Seen(FINE | {"time": 100.0}, 40.0, 160.0)  # somewhere in these two minutes it said 100
    assert judge({"a": late}, Check(), 1, ["a"]) == {}


def test_node_without_an_answer_is_blamed_with_what_it_said_last() -> None:
    found = judge({"a": seen(), "b": Seen(None, 0, 1, "b cannot be reached")}, Check(), 1, ["a", "b"])
    assert found == {"b": ["b cannot be reached"]}


def links(**speeds: Any) -> dict[str, Seen]:
    return {name: seen(links=heard) for name, heard in speeds.items()}


def test_node_whose_links_are_all_slow_is_blamed_and_its_peers_are_not() -> None:
    speeds = links(a={"2": 0.1, "1": 900.0}, b={"0": 900.0, "2": 0.1}, c={"1": 0.1, "0": "ConnectionError: x"})
    assert judge(speeds, Check(), 1, ["a", "b", "c"]) == {"c": ["its links are slower than 1 MB/s or broken"]}


def test_nobody_is_blamed_for_a_network_that_is_slow_everywhere() -> None:
    speeds = links(a={"1": 0.1}, b={"0": 0.1})
    assert judge(speeds, Check(), 1, ["a", "b"]) == {}


def test_links_to_a_node_that_gave_no_answer_are_nobody_elses_fault() -> None:
    found = links(a={"1": "Timeout"}, c={"0": 900.0}) | {"b": Seen(None, 0, 1, "no answer")}
    assert list(judge(found, Check(), 1, ["a", "b", "c"])) == ["b"]


def test_program_leaves_what_it_found_and_is_light(tmp_path: Path) -> None:
    script = "import sys; from fgtrain import check; check.main(); print(sorted(sys.modules))"
    argv = [sys.executable, "-c", script, str(tmp_path), "--key", "k"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "'torch'" not in done.stdout
    assert "'numpy'" not in done.stdout
    found = json.loads((tmp_path / program.FILE).read_text())
    assert found["key"] == "k"
    assert found["writable"]
    assert found["disk_free"] > 0
    assert [f.name for f in tmp_path.iterdir()] == [program.FILE]


def test_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "check.probe").mkdir()  # in the way of the probe, whoever asks
    assert program.look(folder)["writable"] is False


@pytest.mark.train
def test_device_computes_and_links_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    monkeypatch.setattr(program, "_TIMEOUT_S", 240.0)
    assert program.devices()[0]["error"] is None
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found: dict[int, dict[str, float | str]] = {}

    def node(rank: int) -> None:
        address = "::1" if rank == 1 and has_ipv6() else "127.0.0.1"  # one kind says nothing of the others
        found[rank] = program.links(f"{address}:{store.port}", "k", address, rank, 3)

    threads = [threading.Thread(target=node, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert {rank: set(heard) for rank, heard in found.items()} == {0: {"2", "1"}, 1: {"0", "2"}, 2: {"1", "0"}}
    assert all(isinstance(speed, float) and speed > 0 for heard in found.values() for speed in heard.values()), found
