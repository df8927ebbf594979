"""SIGKILL of the uploader at every store request of a snapshot, and in mid-body."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain.errors import Corrupt
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore
from fgtrain.snapshot.upload import Uploader
from fgtrain.stores import open_store
from tests.testbed.doomed import ATTEMPT, HOW, RUN, STEP, WORLD
from tests.testbed.runs import ROOT
from tests.testbed.shares import assert_right, restored, stage


class Doomed:
    """A store with one snapshot, of which copies are given to uploaders that are to die."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = folder / "origin"
        self._number = 0
        runs = RunStore(open_store(str(self.origin)), RUN)
        assert runs.take_attempt(0, WORLD).attempt == ATTEMPT
        self.last = snapshot(runs, folder / "staged", 10, ATTEMPT, WORLD)
        for rank in range(WORLD):
            stage(folder / "staged" / str(rank), RUN, STEP, ATTEMPT, rank, WORLD, self.last)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.testbed.doomed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def upload(self, request: int, how: str) -> tuple[RunStore, str]:
        """Let an uploader of the second snapshot die at a request; returns what it left, and how it ended."""
        self._number += 1
        copy = self.folder / f"copy{self._number}"
        shutil.copytree(self.origin, copy)
        order = {"store": str(copy), "staged": str(self.folder / "staged"), "last": self.last}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order | {"request": request, "how": how}) + "\n")
        self._process.stdin.flush()
        return RunStore(open_store(str(copy)), RUN), self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def snapshot(runs: RunStore, folder: Path, step: int, attempt: int, world: int) -> str:
    """Take a snapshot as ranks that go on from the newest one that verifies; returns its name."""
    last = newest(runs)
    trusted = frozenset(last.chunks()) if last else frozenset[str]()
    headers, uploaders = [], []
    for rank in range(world):
        mine = folder / str(rank)
        headers.append(stage(mine, RUN, step, attempt, rank, world, last.name if last else None))
        uploaders.append(Uploader(runs, mine, attempt, rank, last, trusted=trusted))
        uploaders[rank].store_share(headers[rank])
    name = uploaders[0].commit(headers[0]).name
    uploaders[0].clean(step)
    return name


def newest(runs: RunStore) -> Manifest | None:
    """Return the newest manifest that verifies, as recovery would take it; None if there is none."""
    for manifest in runs.manifests_newest_first():
        if isinstance(manifest, Corrupt):
            continue
        restored(runs, manifest)  # no chunk of a readable manifest may be missing or wrong: not caught
        return manifest
    return None


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doomed]:
    doomed = Doomed(tmp_path_factory.mktemp("doomed"))
    yield doomed
    doomed.close()


@pytest.mark.parametrize("how", HOW)
def test_uploader_killed_at_any_request_leaves_a_state_to_go_on_from(doomed: Doomed, how: str, tmp_path: Path) -> None:
    _, answer = doomed.upload(-1, how)
    requests = int(answer)
    assert requests > 15
    killed = 0
    for request in range(requests):
        runs, answer = doomed.upload(request, how)
        killed += answer == "killed"
        found = newest(runs)
        assert found
        assert found.step in (10, STEP)
        assert_right(runs, found)
        # A new attempt on another world goes on from there.
        attempt = runs.take_attempt(found.step, 1).attempt
        name = snapshot(runs, tmp_path / str(request), STEP + 10, attempt, 1)
        assert_right(runs, runs.manifest(name))
        assert runs.manifest(name).parent == found.name
        shutil.rmtree(runs.store.root)  # type: ignore[attr-defined]
    # Reads have no effect that a kill could come after; the number of requests of a doomed one is the same.
    assert killed == requests if how == "before" else killed >= 10
