"""Workers from a warm process: as good as fresh ones, and nobody outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain import warm_client
from fgtrain.warm import EXIT_UNFIT, PRELOAD, READY, SOCKET
from tests.testbed.runs import ROOT, wait_for

pytestmark = pytest.mark.train

_RUN = "waits"


class Node:
    """A warm process, and workers that wait for a run file which never comes (it is a named pipe)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.args = [f"file://{folder}/store", _RUN, str(folder / "node")]
        run_file = folder / "store" / "runs" / _RUN / "run.json"
        run_file.parent.mkdir(parents=True)
        os.mkfifo(run_file)
        self.env = os.environ | {
            SOCKET: f"test-{os.getpid()}-{folder.name}",
            PRELOAD: "fgtrain.train,fgtrain.tensorboard,fgtrain.models.timm,fgtrain.data.digits",
            "OMP_NUM_THREADS": "2",  # numpy and torch may make threads only when they compute
            "FGLAUNCH_AGENT_PID": str(os.getpid()),
            "FGLAUNCH_DETECT_S": "0.5",
            "FGLAUNCH_ROUND": "0",
            "PYTHONPATH": str(ROOT),
        }
        heard, told = os.pipe()
        argv = [sys.executable, "-m", "fgtrain.warmup", *self.args]
        self.warm = subprocess.Popen(argv, env=self.env | {READY: str(told)}, pass_fds=[told], cwd=ROOT)
        os.close(told)
        assert os.read(heard, 1) == b"1"  # a client does not wait for long for one that is still to come
        os.close(heard)
        self.clients: list[subprocess.Popen[bytes]] = []

    def start(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start a worker; returns its client and its process ID, once it runs and its client minds signals."""
        known = {int(p.stem.split("-")[1]) for p in self.logs()}
        argv = [sys.executable, "-I", "-S", warm_client.__file__, *self.args]
        client = subprocess.Popen(argv, env=self.env, cwd=ROOT, start_new_session=True)
        self.clients.append(client)
        new = wait_for(lambda: {int(p.stem.split("-")[1]) for p in self.logs()} - known, "the worker has a log")
        [worker] = new
        if worker != client.pid:
            wait_for(lambda: catches(client.pid, signal.SIGUSR2), "the last of the client's handlers is there")
        return client, worker

    def logs(self) -> list[Path]:
        return list((self.folder / "node" / "logs").glob("starting-*.log"))

    def end(self) -> None:
        for process in [self.warm, *self.clients]:
            process.kill()
            process.wait(240)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if sys.platform != "linux":
        pytest.skip("warm starts need Linux")
    node = Node(tmp_path)
    yield node
    node.end()


def catches(pid: int, sig: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal. Source: proc(5), SigCgt."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (sig - 1) & 1)


def gone(pid: int) -> bool:
    """Tell whether a process is gone, or dead and waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_worker_and_client_share_their_fate(node: Node) -> None:
    client, worker = node.start()
    assert Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")[2] == b"fgtrain.worker"
    assert os.getpgid(worker) == worker

    os.kill(worker, signal.SIGKILL)
    assert client.wait(240) == -signal.SIGKILL, "the client ends as its worker did"

    client, worker = node.start()
    client.kill()
    # Buried, not only dead: the others of its round are killed then, and the next one is of the same.
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the worker of a killed client is gone")

    client, worker = node.start()
    client.send_signal(signal.SIGHUP)
    assert client.wait(240) == -signal.SIGHUP, "signals are passed on"
    assert gone(worker)

    client, worker = node.start()
    client.send_signal(warm_client.OVER_SIGNAL)
    assert client.wait(240) == warm_client.EXIT_OVER, "a worker whose round is over is no failure of its own"
    assert gone(worker)

    client, worker = node.start()
    os.kill(worker, signal.SIGSTOP)
    assert client.wait(240) == -signal.SIGKILL, "a worker that stays stopped is killed"

    (one, first), (two, second) = node.start(), node.start()
    os.kill(first, signal.SIGKILL)
    assert [one.wait(240), two.wait(240)] == [-signal.SIGKILL] * 2, "the others of its round are killed at once"
    assert gone(second)

    client, worker = node.start()
    node.warm.kill()
    assert client.wait(240) == -signal.SIGKILL
    wait_for(lambda: gone(worker), "the worker of a killed warm process is gone")

    client, worker = node.start()
    assert worker == client.pid, "without a warm process, the client becomes the worker"


def test_warm_process_that_has_threads_refuses_to_fork(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    env = os.environ | {SOCKET: f"test-{os.getpid()}-t", PRELOAD: "threaded", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    env.pop("FGLAUNCH_AGENT_PID", None)
    done = subprocess.run([sys.executable, "-m", "fgtrain.warmup", "a", "b", "c"], env=env, timeout=240, check=False)
    assert done.returncode == EXIT_UNFIT


def test_agent_knows_when_its_workers_would_start_at_once(tmp_path: Path) -> None:
    """A module that takes long to import: it waits for somebody to write into a named pipe."""
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "slow.py").write_text(f"open({str(tmp_path / 'gate')!r}).read()\n")
    source = (
        "import sys\nfrom fgtrain import warm\nwarm.keep(['a', 'b', 'c'])\n"
        "print(warm.await_ready(0), flush=True)\nprint(warm.await_ready(240), flush=True)\n"
    )
    env = os.environ | {PRELOAD: "slow", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    env.pop("FGLAUNCH_AGENT_PID", None)
    agent = subprocess.Popen([sys.executable, "-c", source], env=env, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    assert agent.stdout.readline() == "False\n"
    (tmp_path / "gate").write_text("")
    assert agent.stdout.read() == "True\n"
    assert agent.wait(240) == 0
    agent.stdout.close()
