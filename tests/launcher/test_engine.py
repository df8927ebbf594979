"""--engine: typed, part of the world, shown by --dry-run; `deepspeed` refused where it is not installed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from cluster.fake import Clock, FakeCluster
from cluster.local import LocalCluster
from fgtrain.errors import UserError
from fgtrain.plan import Engine, World, chosen_world
from fgtrain.stores.memory import MemoryStore
from launcher.cli import ENGINES, main, parser
from launcher.commands.resume import spread_anew
from launcher.commands.run import dry_run
from launcher.foreground import check_start
from launcher.prepare import check_training_installed
from launcher.queued import Job
from tests.fgtrain.test_runstore import run_file

WORLD = World(2, 2, engine="deepspeed")


def shown(folder: Path, world: World) -> list[str]:
    cluster = LocalCluster(folder / "work", folder)
    nodes = cluster.nodes("run", world.started)
    return dry_run(run_file(), MemoryStore("memory://engine"), cluster, nodes, world, 29999)


def test_engine_is_one_of_two_and_kept_by_who_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_args(Engine) == ENGINES
    assert parser("run").parse_args(["run", "r.py", "--engine", "deepspeed"]).engine == "deepspeed"
    assert chosen_world(WORLD, None, None, None, None, None) == WORLD
    assert chosen_world(WORLD, None, None, None, None, "torchrun") == World(2, 2)
    assert msgspec.json.decode(b'{"nodes": 2, "gpus": 2}', type=World).engine == "torchrun", (
        "of runs before there were two"
    )
    with pytest.raises(SystemExit) as ended:
        main(["recipes/quickstart.py", "--engine", "mpi"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("mpi", *ENGINES))


class Furnished(FakeCluster):
    """One that makes the environments of its nodes."""

    extras: tuple[str, ...] | None = ("train",)


@pytest.mark.parametrize(
    ("words", "engine", "who"),
    [("zero2", "torchrun", "the recipe's strategy"), ("fsdp", "deepspeed", "--engine deepspeed")],
)
def test_environments_without_deepspeed_are_refused_before_the_start(words: str, engine: Engine, who: str) -> None:
    run = spread_anew(run_file(), words)
    cluster, world = Furnished(Clock(), ["a"], {}), World(1, 1, engine=engine)
    with pytest.raises(UserError, match=rf'{who} needs deepspeed, .* put extras = \["deepspeed"\] into its entry'):
        check_start(run, cluster, world, None)
    check_start(spread_anew(run, "fsdp"), cluster, World(1, 1), None)
    for cluster.extras in (None, ("train", "deepspeed")):
        check_start(run, cluster, world, None)
    check_start(run, FakeCluster(Clock(), ["a"], {}), world, None)


def test_queued_job_knows_its_engine() -> None:
    world = World(2, 1, engine="deepspeed")
    job = Job(kind="slurm", cluster="lab", settings={}, world=world, port=None)
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job).world == world


def test_what_is_missing_is_named_with_the_extra_that_has_it() -> None:
    def all_but(missing: str, engine: Engine) -> None:
        check_training_installed(run_file().recipe, engine, installed=lambda module: module != missing)

    all_but("deepspeed", "torchrun")
    all_but("", "deepspeed")
    with pytest.raises(
        UserError, match=r"--engine deepspeed: .*pip install 'fglaunch\[deepspeed\]', or --engine torchrun"
    ):
        all_but("deepspeed", "deepspeed")


def test_dry_run_shows_the_hostfile_and_the_launchers_command_on_each_node(tmp_path: Path) -> None:
    lines = shown(tmp_path, WORLD)
    assert any("= 4 ranks; deepspeed starts them;" in line for line in lines)
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("hostfile")] == [
        "node0 slots=2",
        "node1 slots=2",
    ]
    agents = [shlex.split(line) for line in lines if "fgtrain.agent" in line]
    assert len(agents) == 2
    for words in agents:
        assert {"--nproc-per-node=1", "fgtrain.deepspeed_launch", "--slots=2"} <= set(words)
        assert not any(word.startswith("FGLAUNCH_PRELOAD") for word in words), "DeepSpeed starts workers from scratch"
    launchers = [shlex.split(line) for line in lines if "deepspeed.launcher.runner" in line]
    assert [next(w for w in words if w.startswith("--node_rank")) for words in launchers] == [
        "--node_rank=0",
        "--node_rank=1",
    ]
    assert all({"--master_addr=127.0.0.1", "--master_port=29999", "--no_ssh"} <= set(words) for words in launchers)


def test_torchrun_is_shown_without_any_of_that(tmp_path: Path) -> None:
    text = "\n".join(shown(tmp_path, World(2, 2)))
    assert "--nproc-per-node=2" in text
    assert "deepspeed" not in text
    assert "hostfile" not in text
