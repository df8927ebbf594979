"""A real run on a SkyPilot whose machines are folders, which are lost in mid-epoch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster._sky_task import cluster_name
from tests.cluster.test_sky import Bed, pytestmark  # noqa: F401  (as there, it needs OpenSSH's server)
from tests.testbed.runs import Runs, wait_for
from tests.testbed.sky import fake_driver

NAME = "lost"
RECIPE = (
    *("recipes/quickstart.py", "--set", "epochs=8", "--set", "snapshots.steps=4"),
    *("--nodes", "2", "--gpus", "1", "--cluster", "cloud"),
)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    bed.end()


@pytest.fixture
def runs(bed: Bed, tmp_path: Path) -> Iterator[Runs]:
    config = tmp_path / "clusters.toml"
    config.write_text(
        f'[cloud]\nkind = "sky"\nshared = true\nskypilot = "{bed.settings["skypilot"]}"\n'
        'resources = { infra = "fake", use_spot = true }\n'
    )
    runs = Runs(tmp_path, FGLAUNCH_CLUSTERS=str(config))
    yield runs
    runs.end()


def test_dry_run_shows_what_is_on_offer(runs: Runs) -> None:
    done = runs.call(*RECIPE, "--dry-run")
    assert done.returncode == 0, done.stderr
    offers = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("offer")]
    assert offers == ["3.00 $/h: 2 x folder (spot) in Fake/here", "5.00 $/h: 2 x folder (spot) in Fake/there"]


@pytest.mark.chaos
@pytest.mark.train
def test_run_goes_on_after_its_machines_were_lost(bed: Bed, runs: Runs) -> None:
    with runs.start(NAME, *RECIPE, "--name", NAME) as run:
        store = runs.folder / "store" / "runs" / NAME
        manifests = lambda: list(store.glob("manifests/*"))  # noqa: E731
        wait_for(lambda: manifests() or run.process.poll() is not None, "a snapshot is committed")
        assert run.process.poll() is None, run.output()
        (bed.folder / "full").touch()
        fake_driver.end(bed.folder / cluster_name(NAME))
        wait_for(lambda: "no machines anywhere" in run.output(), "it is told that there are none")
        (bed.folder / "full").unlink()
        assert run.wait() == 0, run.output()
        output = run.output()
    assert "SkyPilot has lost it" in output
    assert "given back" in output
    assert bed.calls().count("launch") >= 3
    assert not list(bed.folder.glob("fgl-*/"))
    resumed = re.search(r"attempt 2: from step (\d+) ", output)
    assert resumed
    assert int(resumed[1]) >= 1
