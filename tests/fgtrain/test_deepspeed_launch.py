"""What DeepSpeed's launcher is started with, and what its end means; who stands for it, with a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fgtrain.deepspeed_launch import Launch, end_of, hostfile, killed_by, launcher_argv, worker_env
from fgtrain.lifeline import LAUNCHER_PID
from fgtrain.pulse import FILE, Beat, Phase, Stage, decode
from tests.testbed.runs import ROOT, wait_for

WORKER = """
import os, signal, sys, time
from pathlib import Path
from fgtrain.pulse import Phase, Pulse
{before}
pulse = Pulse(Path({folder!r}), slot=0, rank=0)
{after}
"""


def beat(phase: Phase, slot: int = 0) -> Beat:
    return Beat(slot, phase, Stage.NONE, slot, 1, 4711, 0, 0, 0.0, "1")


def test_hostfile_names_the_nodes_in_order_of_rank() -> None:
    assert hostfile(["gpu7", "gpu2"], 4) == "gpu7 slots=4\ngpu2 slots=4\n"


def test_launcher_starts_workers_here_only_and_leaves_them_their_devices() -> None:
    def argv(devices: str | None) -> list[str]:
        place = {"folder": "/w/run/n1", "rank": 1, "address": "10.0.0.1", "port": 29500}
        return list(launcher_argv("py", **place, devices=devices, worker=("s3://b", "run", "/w/run/n1")))  # type: ignore[arg-type]

    words = argv(None)
    assert words[:4] == ["py", "-m", "deepspeed.launcher.runner", "--hostfile=/w/run/n1/hostfile"]
    assert {"--no_ssh", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=29500"} <= set(words)
    assert words[words.index("--no_local_rank") + 1 :] == [
        "py",
        "-u",
        "-m",
        "fgtrain.worker",
        "s3://b",
        "run",
        "/w/run/n1",
    ]
    shared = argv("6,7")
    assert shared[shared.index("--no_local_rank") + 1 :][:2] == ["env", "CUDA_VISIBLE_DEVICES=6,7"]
    assert [w for w in shared if w not in words] == ["env", "CUDA_VISIBLE_DEVICES=6,7"]


def test_workers_are_not_the_agents_children_and_know_whose_they_are() -> None:
    env = worker_env({"FGLAUNCH_AGENT_PID": "1", "LOCAL_WORLD_SIZE": "1", "PATH": "/bin"}, 4, 99)
    assert env == {LAUNCHER_PID: "99", "LOCAL_WORLD_SIZE": "4", "PATH": "/bin"}


@pytest.mark.parametrize(
    "code, phases, end",
    [
        (0, [Phase.DONE, Phase.DONE], 0),
        (0, [Phase.DONE, Phase.STEP], -signal.SIGKILL),  # the launcher itself was killed, which DeepSpeed calls success
        (0, [Phase.DONE], -signal.SIGKILL),
        (0, [], -signal.SIGKILL),
        (-signal.SIGKILL, [Phase.DONE, Phase.DONE], 0),  # asked to leave when all was done
        (1, [Phase.STEP, Phase.STEP], 1),
        (75, [Phase.FINISH, Phase.FINISH], 75),
        (256 - signal.SIGKILL, [Phase.STEP, Phase.STEP], -signal.SIGKILL),
        (256 - signal.SIGSEGV, [Phase.STEP, Phase.STEP], -signal.SIGSEGV),
        (-signal.SIGTERM, [Phase.STEP], -signal.SIGTERM),
        (137, [], 137),
    ],
)
def test_end_of_a_launcher_is_that_of_its_workers(code: int, phases: list[Phase], end: int) -> None:
    assert end_of(code, [beat(p, slot) for slot, p in enumerate(phases)], 2) == end


def test_signal_that_ended_a_worker_is_told_though_others_failed_since() -> None:
    assert end_of(1, [beat(Phase.STEP)], 1, killed=9) == -9
    assert end_of(0, [beat(Phase.DONE)], 1, killed=9) == 0, "all was done"
    with subprocess.Popen(["sleep", "600"]) as process:
        assert killed_by(process.pid) == 0
        process.kill()
        assert wait_for(lambda: killed_by(process.pid), "the end") == signal.SIGKILL
    assert killed_by(process.pid) == 0


def launch(folder: Path, before: str = "", after: str = "", detect_s: float = 60.0) -> Launch:
    """Return a launch of one worker, whose launcher is itself."""
    code = WORKER.format(folder=str(folder), before=before, after=after)
    env = os.environ | {"PYTHONPATH": str(ROOT), LAUNCHER_PID: str(os.getpid())}
    return Launch([sys.executable, "-c", code], env, folder, 1, detect_s)


def run(started: Launch) -> list[int]:
    """Run a launch in a thread; returns where its end will be."""
    ends: list[int] = []
    threading.Thread(target=lambda: ends.append(started.run()), daemon=True).start()
    return ends


def test_worker_that_is_asked_leaves_as_it_likes(tmp_path: Path) -> None:
    started = launch(
        tmp_path,
        before="signal.signal(signal.SIGTERM, lambda *a: sys.exit(75))",
        after="time.sleep(600)",
    )
    ends = run(started)
    wait_for(lambda: (tmp_path / FILE).exists() and decode((tmp_path / FILE).read_bytes()), "the worker")
    started.ask()
    assert wait_for(lambda: ends, "the end") == [75]


def test_launcher_that_has_no_worker_yet_is_killed_when_asked_to_leave(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"of an earlier round")
    started = launch(tmp_path, before="time.sleep(600)")
    started.ask()
    ends = run(started)
    assert wait_for(lambda: ends, "the end") == [-signal.SIGKILL]


def test_worker_that_is_stopped_is_killed(tmp_path: Path) -> None:
    started = launch(tmp_path, after="os.kill(os.getpid(), signal.SIGSTOP)", detect_s=0.5)
    ends = run(started)
    assert wait_for(lambda: ends, "the end") == [-signal.SIGKILL]


def test_worker_that_is_done_says_so(tmp_path: Path) -> None:
    assert launch(tmp_path, after="pulse.phase(Phase.DONE)").run() == 0
    assert launch(tmp_path).run() == -signal.SIGKILL


def test_worker_does_not_outlive_the_process_that_stands_for_its_launcher(tmp_path: Path) -> None:
    stands = subprocess.Popen(["sleep", "600"])
    code = "import time, fgtrain.lifeline as l; l.die_with_launcher(); print('up', flush=True); time.sleep(600)"
    env = os.environ | {"PYTHONPATH": str(ROOT), LAUNCHER_PID: str(stands.pid)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"up\n"
        assert worker.poll() is None
        stands.kill()
        stands.wait(240)
        assert worker.wait(240) == -signal.SIGKILL
