"""Logs on their way to the store: nothing twice, nothing lost while the machine lives, nothing without bound."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fgtrain import logs
from fgtrain.logshipping import BACKLOG_BYTES, SEGMENT_BYTES, Shipper
from fgtrain.runstore import RunStore
from fgtrain.stores import Entry, Store, open_store
from fgtrain.stores.memory import MemoryStore
from tests.testbed.faulty_store import Fault, FaultyStore, at, drawn


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.stall_s = 0.0  # before each look at it

    def __call__(self) -> float:
        self.now += self.stall_s
        return self.now


class Node:
    """A node's folder and a shipper of it, under a clock that the test moves."""

    def __init__(self, folder: Path, store: Store, name: str = "node0") -> None:
        self.folder, self.name, self.clock = folder, name, Clock()
        self.runs = RunStore(store, "r")
        self.dead: set[int] = set()
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.begin(0)

    def begin(self, start_ms: int) -> None:
        self.shipper = Shipper(
            self.runs,
            self.folder,
            self.name,
            start_ms=start_ms,
            clock=self.clock,
            alive=lambda pid: pid not in self.dead,
        )

    def write(self, name: str, data: bytes) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def tick(self, seconds: float = 100.0) -> None:
        self.clock.now += seconds
        self.shipper.tick()

    def stored(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for stream, segment in logs.segments(self.runs):
            before = found.get(stream.name, b"")
            assert segment.start <= len(before), f"a hole in {stream.name}"
            found[stream.name] = before[: segment.start] + self.runs.store.get(segment.key)
        return found


def node(tmp_path: Path, store: Store | None = None) -> Node:
    return Node(tmp_path / "node0", store or open_store(str(tmp_path / "store")))


def test_log_arrives_stretch_by_stretch_and_no_object_is_written_twice(tmp_path: Path) -> None:
    n = node(tmp_path)
    for number in range(5):
        n.write("logs/00001-00000.log", f"line {number} 行\n".encode())
        n.tick()
    assert n.stored()["00001-00000"].decode().splitlines() == [f"line {i} 行" for i in range(5)]
    keys = [s.key for _, s in logs.segments(n.runs)]
    assert len(keys) == len(set(keys)) == 5
    n.tick()
    assert len(list(logs.segments(n.runs))) == 5


@given(
    lines=st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=12),
    seed=st.integers(0, 1000),
    rate=st.sampled_from([0.0, 0.3, 0.7]),
)
def test_what_was_written_arrives_through_faults_and_new_beginnings(
    lines: list[tuple[bytes, bool]], seed: int, rate: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory = MemoryStore(f"memory://{uuid.uuid4().hex}")
        n = Node(Path(folder), FaultyStore(memory, drawn(seed, rate, Fault.REFUSED, Fault.LOST)))
        for data, again in lines:
            n.write("logs/00001-00000.log", data)
            n.tick()
            if again:
                n.begin(0)
        n.runs = RunStore(memory, "r")
        n.begin(0)
        n.shipper.finish(10)
        assert n.stored().get("00001-00000", b"") == b"".join(data for data, _ in lines)


def test_rank_that_ends_before_its_attempt_is_shipped_when_it_is_gone(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("logs/starting-41.log", b"no such module\n")
    n.write("logs/starting-42.log", b"hello\n")
    n.dead.add(41)
    n.tick()
    assert n.stored() == {"starting-node0-41": b"no such module\n"}
    (n.folder / "logs/starting-42.log").rename(n.folder / "logs/00001-00000.log")
    n.write("logs/00001-00000.log", b"world\n")
    n.tick()
    assert n.stored()["00001-00000"] == b"hello\nworld\n"
    assert "starting-node0-42" not in n.stored()


def test_last_lines_are_shipped_in_the_end_whatever_is_due_when(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("logs/00001-00000.log", b"a\n")
    n.tick()
    n.write("logs/00001-00000.log", b"b\n" + b"x" * (3 * SEGMENT_BYTES))
    n.write("logs/starting-7.log", b"still starting\n")
    assert n.shipper.finish(10)
    assert n.stored()["00001-00000"].startswith(b"a\nb\n")
    assert len(n.stored()["00001-00000"]) == 4 + 3 * SEGMENT_BYTES
    assert n.stored()["starting-node0-7"] == b"still starting\n"


def test_last_lines_are_shipped_though_the_machine_stood_still_until_the_time_was_over(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("logs/00001-00000.log", b"the last line\n")
    n.clock.stall_s = 100.0
    assert not n.shipper.finish(10)  # there may be more
    assert n.stored()["00001-00000"] == b"the last line\n"


def test_new_attempt_brings_out_what_the_last_one_said_at_once(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("logs/00001-00000.log", b"a\n")
    n.tick()
    n.write("logs/00001-00000.log", b"Segmentation fault\n")
    n.tick(seconds=0.1)
    assert n.stored()["00001-00000"] == b"a\n"
    n.write("logs/00002-00000.log", b"again\n")
    n.tick(seconds=0.1)
    assert n.stored()["00001-00000"].endswith(b"Segmentation fault\n")


def test_chatty_log_gets_an_object_ever_more_rarely(tmp_path: Path) -> None:
    n = node(tmp_path, MemoryStore("memory://chatty"))
    for _ in range(10_000):
        n.write("logs/00001-00000.log", b"x\n")
        n.tick(seconds=1.0)
    assert len(list(logs.segments(n.runs))) < 1000


def test_flood_leaves_out_its_middle(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("logs/00001-00000.log", b"first\n")
    n.tick()
    with (n.folder / "logs/00001-00000.log").open("r+b") as file:
        file.truncate(BACKLOG_BYTES + 100)
    n.write("logs/00001-00000.log", b"last\n")
    n.tick()
    [first, last] = [s for _, s in logs.segments(n.runs)]
    assert last.start - first.stop > BACKLOG_BYTES - 2 * SEGMENT_BYTES
    assert n.runs.store.get(last.key).endswith(b"last\n")
    assert last.stop - last.start == SEGMENT_BYTES


def test_store_that_is_away_is_tried_ever_more_rarely_and_gets_everything(tmp_path: Path) -> None:
    faults = {i: Fault.REFUSED for i in range(1, 9)}
    store = FaultyStore(MemoryStore("memory://away"), at(faults))
    n = node(tmp_path, store)
    n.write("logs/00001-00000.log", b"a\n")
    for _ in range(300):
        n.tick(seconds=1.0)
    assert store.requests < 15
    assert n.shipper.failure == ""
    n.runs = RunStore(store.inner, "r")
    assert n.stored()["00001-00000"] == b"a\n"


def test_agents_of_two_machines_with_one_name_do_not_mix(tmp_path: Path) -> None:
    store = MemoryStore("memory://two")
    first, second = Node(tmp_path / "a", store), Node(tmp_path / "b", store)
    first.begin(1000)
    first.write("agent.log", b"one\n")
    first.tick()
    second.begin(2000)
    second.write("agent.log", b"two\n")
    second.tick()
    assert first.stored() == {"agent.node0.1000": b"one\n", "agent.node0.2000": b"two\n"}


def test_agent_that_is_started_again_ships_only_what_is_new(tmp_path: Path) -> None:
    n = node(tmp_path)
    n.write("agent.log", b"one\n")
    n.tick()
    n.begin(5)
    n.write("agent.log", b"two\n")
    n.tick()
    assert n.stored() == {"agent.node0.0": b"one\n", "agent.node0.5": b"two\n"}


def test_only_what_the_store_has_of_ones_own_streams_is_listed(tmp_path: Path) -> None:
    asked: list[str] = []

    class Listed(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[Entry]:
            asked.append(prefix)
            return super().list(prefix)

    n = node(tmp_path, Listed("memory://listed"))
    n.write("logs/00001-00000.log", b"a\n")
    n.tick()
    assert asked == ["runs/r/logs/00001-00000/"]


def test_names_of_streams_are_read_back() -> None:
    for stream in (
        logs.rank_stream(3, 17),
        logs.rank_stream(123456, 0),
        logs.starting_stream("user@host-1.lab:22", 77),
        logs.node_stream("agent", "gpu-7.rack.example", 1795298640000),
    ):
        assert logs.parse(stream.name) == stream
    assert logs.parse("something else") is None
