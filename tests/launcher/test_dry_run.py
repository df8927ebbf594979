"""--dry-run prints the plan and what each node would run, and leaves no trace anywhere."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import hardware
from tests.testbed.runs import ROOT, Runs

RECIPE = ("recipes/quickstart.py", "--dry-run", "--name", "dry", "--set", "epochs=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry")


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """One that nothing listens at, and that is held so that nothing will."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield str(held.getsockname()[1])


@pytest.fixture(scope="module")
def lines(folder: Path, port: str) -> list[str]:
    runs = Runs(folder, CUDA_VISIBLE_DEVICES="")
    done = runs.call(*RECIPE, "--nodes", "3", "--port", port)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_plan_is_printed(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert "3 nodes x 1 processes = 3 ranks" in text
    assert "45 of 64 samples: 2 epochs; warm-up 22; evaluation after 23, 45" in text
    assert "4 micro-batches of 16 a step" in text
    shares = [line.split("micro-batches: ")[1] for line in lines if line.startswith("  rank")]
    assert shares == ["0..0", "1..1", "2..3"]


def test_commands_are_those_of_a_real_run(lines: list[str], port: str) -> None:
    commands = [line.split(maxsplit=1) for line in lines if line.startswith("node")]
    assert [node for node, _ in commands] == ["node0", "node0", "node1", "node2"]
    meeting, *agents = [shlex.split(command) for _, command in commands]
    assert meeting == ["cd", str(ROOT), "&&", sys.executable, "-m", "fgtrain.rendezvous", "--port", port]
    for number, words in enumerate(agents):
        assert words[:3] == ["cd", str(ROOT), "&&"]
        assert any(w.startswith("OMP_NUM_THREADS=") for w in words)
        assert words[words.index("fgtrain.agent") - 2] == sys.executable
        assert "--nnodes=3" in words
        assert f"--rdzv-endpoint=127.0.0.1:{port}" in words
        assert words[-3:-1] == [f"file://{Path(words[-1]).parents[2]}/store", "dry"]
        assert words[-1].endswith(f"/work/dry/node{number}")


def test_nothing_is_left_behind(lines: list[str], folder: Path) -> None:
    assert lines
    assert not list(folder.iterdir())


def test_each_node_is_given_its_own_gpus(tmp_path: Path) -> None:
    done = Runs(tmp_path, CUDA_VISIBLE_DEVICES="4,5,6,7").call(*RECIPE, "--nodes", "2", "--gpus", "2")
    assert done.returncode == 0, done.stderr
    agents = [line for line in done.stdout.splitlines() if "fgtrain.agent" in line]
    assert ["CUDA_VISIBLE_DEVICES=4,5 " in agents[0], "CUDA_VISIBLE_DEVICES=6,7 " in agents[1]] == [True, True]
    assert "CPU processes" not in done.stderr


def test_cpu_processes_are_said_once_and_too_many_are_warned_of(tmp_path: Path) -> None:
    many = str(hardware.cpu_count() + 1)
    settings = ("--set", "batch.micro=1", "--set", f"batch.total={many}")
    done = Runs(tmp_path, CUDA_VISIBLE_DEVICES="").call(*RECIPE, "--nodes", many, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no GPU on this machine: --gpus 1 means CPU processes") == 1
    assert f"warning: {many} processes share" in done.stderr


def test_span_of_nodes_and_spares_are_started_and_told_when_silence_is_a_loss(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CUDA_VISIBLE_DEVICES="")
    done = runs.call(*RECIPE, "--nodes", "1:2", "--spares", "1", "--detect", "1.5")
    assert done.returncode == 0, done.stderr
    assert "1:2 nodes x 1 processes = 1 to 2 ranks; lost after 1.5 s; 1 nodes wait to step in" in done.stdout
    agents = [line for line in done.stdout.splitlines() if "fgtrain.agent" in line]
    assert len(agents) == 3
    for number, line in enumerate(agents):
        assert "--nnodes=1:2" in line
        assert "--rdzv-conf=detect=1.5" in line
        assert f"FGLAUNCH_NODE=node{number} " in line
        assert "FGLAUNCH_PRELOAD=fgtrain.train,fgtrain.tensorboard,fgtrain.stores.file,fgtrain.models.timm" in line


@pytest.mark.parametrize(
    ("option", "value"), [("--nodes", "2:1"), ("--nodes", "x"), ("--detect", "0"), ("--spares", "-1")]
)
def test_world_that_makes_no_sense_is_one_line_that_names_the_option(tmp_path: Path, option: str, value: str) -> None:
    done = Runs(tmp_path).call(*RECIPE, option, value)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{option} {value}" in done.stderr
