"""What becomes of a notice: the flag, the event, the record, and when the node leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from fgtrain.herald import Herald, Memory
from fgtrain.notice import LEAD_S, Notice, NoticeRecord
from fgtrain.notices import gcp
from fgtrain.notices.azure import Azure
from fgtrain.notices.gcp import Gcp
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.faulty_store import Fault, FaultyStore, first_of
from tests.testbed.metadata import Patient, metadata_service


def notice(**changes: Any) -> Notice:
    return Notice(**({"source": "aws", "what": "gone", "id": "1", "loss": True, "time": 1000.0} | changes))


def azure_event(begins: float | None) -> dict[str, Any]:
    """`begins` None: it has begun."""
    when = "" if begins is None else formatdate(begins, usegmt=True)
    status = "Started" if begins is None else "Scheduled"
    return {"EventId": "e", "EventType": "Reboot", "Resources": ["vm-1"], "EventStatus": status, "NotBefore": when}


def hear(spokesman: Herald, *said: Notice, watch: str = "aws-0") -> None:
    spokesman.hear(watch, said)
    spokesman.tick()
    spokesman.record()


def herald(tmp_path: Path, clock: Callable[[], float], store: Any = None) -> tuple[Herald, RunStore]:
    runs = RunStore(store or open_store(str(tmp_path / "store")), "r")
    (tmp_path / "node0").mkdir()
    return Herald(runs, tmp_path / "node0", "node0", clock), runs


def texts(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "node0" / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_notice_becomes_flag_event_and_record_once(tmp_path: Path) -> None:
    spokesman, runs = herald(tmp_path, lambda: 1000.0)
    for _ in range(3):
        hear(spokesman, notice(deadline=1120.0))
    assert runs.read_all("notices", NoticeRecord) == [NoticeRecord(node="node0", notice=notice(deadline=1120.0))]
    assert texts(tmp_path) == ["node0: notice from aws: gone, in 120 s; a snapshot, then it leaves"]
    assert spokesman.leaving


def test_notice_long_before_the_end_is_obeyed_shortly_before_it(tmp_path: Path) -> None:
    now = 1000.0
    spokesman, _ = herald(tmp_path, lambda: now)
    hear(spokesman, notice(deadline=4600.0))
    assert not spokesman.leaving
    now = 4600.0 - LEAD_S
    spokesman.tick()
    assert spokesman.leaving
    assert texts(tmp_path)[-1] == "node0: it leaves now (gone)"


def test_azure_event_that_starts_early_is_obeyed_at_once(tmp_path: Path) -> None:
    """Somebody approved it, or another VM of the group did: the same event, but it begins now."""
    with metadata_service() as service:
        azure = Azure(Patient(service.url, pause=lambda s: None))
        spokesman, runs = herald(tmp_path, time.time)
        service.events = [azure_event(time.time() + 900)]
        hear(spokesman, *azure.watch())
        assert not spokesman.leaving
        service.events = [azure_event(None)]
        for _ in range(3):
            hear(spokesman, *azure.watch())
        assert spokesman.leaving
        assert len(texts(tmp_path)) == 2  # it is told again, once
        azure.left(spokesman.leaving)
        assert service.approved == ["e"]
    deadlines = [r.notice.deadline or 0.0 for r in runs.read_all("notices", NoticeRecord)]
    assert len(deadlines) == 2  # who looks for a replacement learns that it is needed earlier


def test_azure_event_that_starts_while_the_attendant_is_down_is_obeyed_at_once(tmp_path: Path) -> None:
    spokesman, runs = herald(tmp_path, lambda: 1000.0)
    hear(spokesman, notice(source="azure", deadline=1900.0))
    after = Herald(runs, tmp_path / "node0", "node0", lambda: 1100.0)
    after.tick()
    assert not after.leaving
    hear(after, notice(source="azure", time=1100.0, deadline=1100.0))
    assert after.leaving


def test_deadline_that_seems_to_move_away_does_not(tmp_path: Path) -> None:
    now = 1000.0
    spokesman, _ = herald(tmp_path, lambda: now)
    hear(spokesman, notice(deadline=4600.0))
    now = 4600.0 - LEAD_S
    hear(spokesman, notice(time=now, deadline=now + 3600.0))
    assert spokesman.leaving


def test_azure_event_that_is_called_off_takes_no_node_away(tmp_path: Path) -> None:
    now = time.time()
    with metadata_service() as service:
        azure = Azure(Patient(service.url, pause=lambda s: None))
        spokesman, _ = herald(tmp_path, lambda: now)
        service.events = [azure_event(now + 900)]
        hear(spokesman, *azure.watch())
        service.events = []
        hear(spokesman, *azure.watch())
        now += 900
        spokesman.tick()
        assert not spokesman.leaving
        assert texts(tmp_path)[-1] == "node0: azure has called it off: VM will be rebooted (Reboot); it stays"
        service.events = [azure_event(now + 900)]  # and on again: that is news
        hear(spokesman, *azure.watch())
    assert "an early snapshot now, and it leaves in" in texts(tmp_path)[-1]


def test_google_maintenance_that_is_called_off_takes_no_node_away(tmp_path: Path) -> None:
    now = time.time()
    with metadata_service() as service:
        preempted, maintenance = Gcp(Patient(service.url)).watches
        spokesman, _ = herald(tmp_path, lambda: now)
        service.change("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        hear(spokesman, *maintenance(), watch="gcp-1")
        hear(spokesman, *preempted(), watch="gcp-0")  # says nothing: which is no word on maintenance
        now += 3000
        spokesman.tick()
        assert not spokesman.leaving
        service.change("maintenance-event", "NONE")
        hear(spokesman, *maintenance(), watch="gcp-1")
    now += 600
    spokesman.tick()
    assert not spokesman.leaving


def test_notice_holds_while_its_source_is_silent_or_another_speaks(tmp_path: Path) -> None:
    now = 1000.0
    spokesman, _ = herald(tmp_path, lambda: now)
    hear(spokesman, notice(deadline=4600.0), watch="gcp-1")
    hear(spokesman, watch="gcp-0")
    now = 4600.0 - LEAD_S
    spokesman.tick()
    assert spokesman.leaving


def test_node_that_was_asked_to_leave_stays_asked(tmp_path: Path) -> None:
    spokesman, _ = herald(tmp_path, lambda: 1000.0)
    hear(spokesman, notice())
    hear(spokesman)
    assert spokesman.leaving
    assert len(texts(tmp_path)) == 1


def test_attendant_that_is_started_again_does_not_put_the_end_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google says that an hour is left, whenever it is asked first."""
    now = 1000.0
    monkeypatch.setattr(gcp.time, "time", lambda: now)
    with metadata_service() as service:
        service.change("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        spokesman, runs = herald(tmp_path, lambda: now)
        hear(spokesman, *Gcp(Patient(service.url)).watches[1](), watch="gcp-1")
        now = 4000.0
        after = Herald(runs, tmp_path / "node0", "node0", lambda: now)
        hear(after, *Gcp(Patient(service.url)).watches[1](), watch="gcp-1")
    assert texts(tmp_path)[-1].endswith("in 600 s; an early snapshot now, and it leaves in 450 s")
    assert not after.leaving
    now = 4600.0 - LEAD_S
    after.tick()
    assert after.leaving
    assert len(runs.read_all("notices", NoticeRecord)) == 1


def test_notice_that_was_called_off_while_no_attendant_was_there_takes_no_node_away(tmp_path: Path) -> None:
    spokesman, runs = herald(tmp_path, lambda: 1000.0)
    hear(spokesman, notice(deadline=4600.0))
    after = Herald(runs, tmp_path / "node0", "node0", lambda: 4500.0)
    after.tick()
    assert not after.leaving  # what is remembered is not what is said now
    hear(after)
    after.tick()
    assert not after.leaving
    assert texts(tmp_path)[-1] == "node0: aws has called it off: gone; it stays"
    assert Memory(tmp_path / "node0").read() == {"aws-0": ()}


def test_what_another_machine_was_told_is_not_remembered(tmp_path: Path) -> None:
    Memory(tmp_path, boot="a").write({"aws-0": (notice(),)})
    assert Memory(tmp_path, boot="a").read() == {"aws-0": (notice(),)}
    assert Memory(tmp_path, boot="b").read() == {}
    (tmp_path / "told.json").write_text('{"boot": "a", "to')
    assert Memory(tmp_path, boot="a").read() == {}


def test_recommendation_then_interruption_is_a_snapshot_then_a_departure(tmp_path: Path) -> None:
    spokesman, runs = herald(tmp_path, lambda: 1000.0)
    hear(spokesman, notice(id="rebalance", loss=False))
    assert not spokesman.leaving
    hear(spokesman, notice(id="stop"))
    assert spokesman.leaving
    assert len(runs.read_all("notices", NoticeRecord)) == 2


def test_record_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    store = FaultyStore(open_store(str(tmp_path / "store")), first_of("put", Fault.REFUSED))
    spokesman, runs = herald(tmp_path, lambda: 1000.0, store)
    hear(spokesman, notice())
    assert spokesman.leaving  # the ranks need no store to be told
    assert runs.read_all("notices", NoticeRecord) == []
    spokesman.record()
    assert len(runs.read_all("notices", NoticeRecord)) == 1
