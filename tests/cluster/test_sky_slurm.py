"""The real SkyPilot on a real Slurm: launch, programs, logs, loss, launch anew, tear down. It takes minutes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Command, open_cluster
from cluster._sky_rent import Landlord
from cluster._sky_task import cluster_name, parse_settings
from cluster._ssh_link import close_links
from cluster.sky import SkyCluster
from tests.cluster.test_sky_skypilot import PYTHON, ROOT
from tests.testbed.runs import Runs, wait_for
from tests.testbed.sky.slurm import SlurmBed, missing, slurm_bed

NAME = "lost"
ENTRY = f"""\
[bed]
kind = "sky"
skypilot = "{PYTHON}"
shared = true
idle_minutes = 1
resources = {{ infra = "slurm/bed", cpus = 2 }}
"""

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no SkyPilot at {PYTHON}: scripts/install_sky .venv-sky"),
    pytest.mark.skipif(
        not any(PYTHON.parent.parent.glob("lib/*/site-packages/hostlist*")),
        reason=f"SkyPilot at {PYTHON} knows no Slurm: scripts/install_sky .venv-sky aws slurm",
    ),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    place = tempfile.TemporaryDirectory(prefix="sky-", ignore_cleanup_errors=True)  # short: it holds sockets
    with place as folder, slurm_bed(Path(folder) / "bed", PYTHON) as bed:
        yield bed


def test_programs_run_inside_skypilots_job_and_allocation_ends_when_nothing_runs(
    bed: SlurmBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bed.env.items():
        monkeypatch.setenv(name, value)
    settings = {"skypilot": str(PYTHON), "shared": True, "idle_minutes": 1}
    cluster = open_cluster("sky", {**settings, "resources": {"infra": "slurm/bed", "cpus": 2}}, ROOT, tmp_path)
    assert isinstance(cluster, SkyCluster)
    assert [str(o) for o in cluster.offers(2)] == ["0.00 $/h: 2 x 2CPU--0GB (on demand) in Slurm/bed/main"]
    for node in cluster.nodes("run", 2):
        cluster.make_ready(node)
    nodes = cluster.nodes("run", 2)
    [job] = bed.jobs()
    source = "import os; print(os.environ['SLURM_JOB_ID'], os.environ['SLURMD_NODENAME']); raise SystemExit(7)"
    programs = [cluster.start(node, Command("program", (node.python, "-c", source), {})) for node in nodes]
    assert [p.wait(240) for p in programs] == [7, 7]
    said = [cluster.read(node, "program.log", 0).split() for node in nodes]
    assert said == [[job.encode(), b"n1"], [job.encode(), b"n2"]]
    close_links()  # the laptop leaves
    landlord = Landlord(parse_settings({**settings, "resources": {}}), tmp_path / "sky")
    rent = landlord.rent(cluster_name("run"))
    assert rent is not None
    assert "fglaunch: ready" in landlord.said(cluster_name("run"), rent.job)
    wait_for(lambda: not bed.jobs(), "the allocation is given back", 180)
    cluster.give_back("run")


def test_run_goes_on_after_slurm_took_its_nodes(bed: SlurmBed, tmp_path: Path) -> None:
    config = tmp_path / "clusters.toml"
    config.write_text(ENTRY)
    runs = Runs(tmp_path, FGLAUNCH_CLUSTERS=str(config), **bed.env)
    recipe = ("recipes/quickstart.py", "--set", "epochs=8", "--set", "snapshots.steps=4")
    where = ("--nodes", "2", "--gpus", "1", "--cluster", "bed")
    try:
        with runs.start(NAME, *recipe, *where, "--name", NAME) as run:
            manifests = runs.folder / "store" / "runs" / NAME / "manifests"
            wait_for(lambda: run.process.poll() is not None or any(manifests.glob("*")), "a snapshot is committed", 400)
            assert run.process.poll() is None, run.output()
            for job in bed.jobs():
                bed.cancel(job)
            assert run.wait(500) == 0, run.output()
            output = run.output()
    finally:
        runs.end()
    assert "SkyPilot has lost it" in output
    assert "attempt 2: from step" in output
    assert "given back" in output
    wait_for(lambda: not bed.jobs(), "nothing is left in the queue", 240)
    assert not [pid for pid in runs.processes() if pid != os.getpid()]
