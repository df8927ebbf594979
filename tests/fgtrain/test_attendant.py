"""What an attendant does while the store hangs: its node is told all the same, and the cloud is answered."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain import attendant, logs
from fgtrain.attendant import StoreWork, Told, attend, see_off, store_work
from fgtrain.herald import Herald
from fgtrain.logshipping import Shipper
from fgtrain.notice import Flag, Notice, NoticeRecord
from fgtrain.notices import Source
from fgtrain.runstore import RunStore
from fgtrain.stores.memory import MemoryStore
from tests.testbed.runs import wait_for


class HangingStore(MemoryStore):
    """Puts of some keys are held until `released`; `reached` once one is."""

    def __init__(self, part: str) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")
        self.part = part
        self.reached, self.released = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes | memoryview) -> None:
        if self.part in key:
            self.reached.set()
            assert self.released.wait(300)
        super().put(key, data)


class Cloud(Source):
    """A source that notes what it is told, and how many records there were by then."""

    def __init__(self, name: str, desk: Desk) -> None:
        self.name, self.desk = name, desk
        self.heard: list[tuple[str, int]] = []

    def left(self, notice: Notice) -> None:
        self.heard.append((notice.what, len(self.desk.records())))


class Desk:
    """An attendant's parts at work in this process, beside a store of which some puts hang."""

    def __init__(self, folder: Path, hangs: str) -> None:
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / "00001-00000.log").write_text("a line\n")
        self.store = HangingStore(hangs)
        self.runs, self.flag = RunStore(self.store, "r"), Flag(folder)
        self.herald = Herald(self.runs, folder, "node0")
        self.told: Told = queue.SimpleQueue()
        self.ends: list[bool] = []
        self.work = store_work(Shipper(self.runs, folder, "node0", start_ms=1), self.herald, self.told)
        self.main = threading.Thread(target=lambda: self.ends.append(attend(self.herald, self.told)))
        self.main.start()

    def gone(self) -> None:
        """The agent ends."""
        self.told.put(True)
        self.main.join(300)
        assert self.ends == [True]

    def records(self) -> list[NoticeRecord]:
        return self.runs.read_all("notices", NoticeRecord)


@pytest.fixture
def hung(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(attendant, "LINGER_S", 600.0)  # what is slow here does not hang
    desk = Desk(tmp_path / "node0", request.param)
    yield desk
    desk.store.released.set()
    desk.told.put(True)
    desk.main.join(300)


def notice(id: str = "1") -> Notice:
    return Notice(source="azure", what="Preempt", id=id, loss=True, time=time.time())


@pytest.mark.parametrize("hung", ["/logs/"], indirect=True)
def test_hanging_log_delays_neither_flag_nor_record(hung: Desk) -> None:
    assert hung.store.reached.wait(300)
    hung.told.put(("azure-0", [notice()]))
    wait_for(lambda: hung.flag.leaves and hung.records(), "ranks and store are told")
    assert not list(logs.segments(hung.runs))  # it hangs still


@pytest.mark.parametrize("hung", ["/notices/"], indirect=True)
def test_hanging_record_delays_neither_the_next_notice_nor_logs(hung: Desk) -> None:
    hung.told.put(("azure-0", [Notice(source="azure", what="rebalance", id="0", loss=False, time=time.time())]))
    assert hung.store.reached.wait(300)
    hung.told.put(("azure-0", [notice()]))
    wait_for(lambda: hung.flag.leaves and list(logs.segments(hung.runs)), "ranks are told, and logs shipped")
    assert not hung.records()
    hung.store.released.set()
    hung.gone()
    see_off(hung.herald, hung.work, [])
    assert len(hung.records()) == 2


@pytest.mark.parametrize("hung", ["/"], indirect=True)
def test_hanging_store_keeps_no_source_from_its_answer_and_no_process_from_its_end(
    hung: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendant, "LINGER_S", 0.2)
    azure, aws = Cloud("azure", hung), Cloud("aws", hung)
    hung.told.put(("azure-0", [notice()]))
    wait_for(lambda: hung.flag.leaves, "ranks are told")
    hung.gone()
    see_off(hung.herald, hung.work, [azure, aws])
    assert (azure.heard, aws.heard) == ([("Preempt", 0)], [])
    assert not hung.store.released.is_set()


@pytest.mark.parametrize("hung", ["nothing"], indirect=True)
def test_last_lines_and_what_signals_meant_are_stored_before_the_source_is_answered(hung: Desk) -> None:
    wait_for(lambda: list(logs.segments(hung.runs)), "the first line")
    hung.gone()
    hung.flag.raise_(notice(), leave=True, now=time.time())
    azure = Cloud("azure", hung)
    see_off(hung.herald, hung.work, [azure])
    assert azure.heard == [("Preempt", 1)]


def test_defect_in_the_work_with_the_store_ends_the_attendant(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    told: Told = queue.SimpleQueue()
    StoreWork(broken, lambda: None, told)
    with pytest.raises(RuntimeError, match="a defect"):
        attend(Herald(RunStore(HangingStore("nothing"), "r"), tmp_path, "node0"), told)
