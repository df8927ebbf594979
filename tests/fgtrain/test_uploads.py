"""A rank's end of its uploader: what dies with one is told to the rank that commits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fgtrain.runstore import RunStore
from fgtrain.snapshot.protocol import Abandon, Failed, Persist
from fgtrain.snapshot.uploader import Start
from fgtrain.snapshot.uploads import Uploads
from fgtrain.stores import open_store
from tests.testbed.runs import wait_for


@pytest.mark.parametrize(("rank", "told"), [(1, ["0000000007-00001", "0000000009-00001"]), (0, [])])
def test_shares_that_die_with_an_uploader_are_given_up_by_the_next(tmp_path: Path, rank: int, told: list[str]) -> None:
    runs = RunStore(open_store(f"file://{tmp_path}/store"), "run")
    start = Start(
        store=runs.store.url,
        run="run",
        memory=str(tmp_path),
        attempt=1,
        rank=rank,
        parent=os.getpid(),
        last=None,
        verified=False,
        host="127.0.0.1",
        token="",
    )
    uploads = Uploads(start)
    try:
        os.kill(uploads.pid, signal.SIGSTOP)
        uploads.order(Persist(str(tmp_path), "slot0", 7, False))
        os.kill(uploads.pid, signal.SIGKILL)
        assert isinstance(wait_for(uploads.report, "it has died"), Failed)
        uploads.order(Persist(str(tmp_path), "slot1", 9, False))  # nobody is there
        assert isinstance(wait_for(uploads.report, "nobody took it"), Failed)
        uploads.ensure(None)
        uploads.order(Abandon(11, "", "to hear that it is at work"))
        assert isinstance(wait_for(uploads.report, "the next one answers"), Failed)
    finally:
        uploads.close()
    given_up = [e.key for e in runs.store.list(runs.key("parts/"))]
    assert [k for k in given_up if "/0000000011-" not in k] == [
        runs.key(f"parts/{step}/{rank:05d}.failed") for step in told
    ]
