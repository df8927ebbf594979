"""A SkyPilot whose machines are folders: `python fake_driver.py FOLDER` speaks the protocol of `cluster._sky_driver`.

A machine is a home folder; its job is run by bash, as SkyPilot's are, and it is reached by an sshd of its own that has
no port: OpenSSH's client starts one for each connection. Everything on it carries its home in the environment, so that
all of it can be lost at once. FOLDER/full makes every launch fail, FOLDER/full-spot those of spot machines;
FOLDER/slow has launches take as long as it is there; FOLDER/here-is-full has the dearer place be taken; FOLDER/no-spot
and FOLDER/no-on-demand leave that kind out of all offers. FOLDER/calls has what was asked.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
LOST_S = 240.0
PRICES = {True: 1.5, False: 4.0}


class FakeSky:
    """What the driver's actions come to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hello(self) -> dict[str, str]:
        return {"version": "fake"}

    def offers(self, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        nodes, spot = config["num_nodes"], _is_spot(config)
        if (self.folder / ("no-spot" if spot else "no-on-demand")).exists():
            raise RuntimeError("no such machines")
        return [self._offer(region, nodes, spot, more) for more, region in enumerate(("here", "there"))]

    def _taken(self, nodes: int, spot: bool) -> dict[str, Any]:
        full = (self.folder / "here-is-full").exists()
        return self._offer("there" if full else "here", nodes, spot, int(full))

    def _offer(self, region: str, nodes: int, spot: bool, more: int) -> dict[str, Any]:
        price = (PRICES[spot] + more) * nodes
        return {
            "cloud": "Fake",
            "region": region,
            "zone": None,
            "machine": "folder",
            "accelerators": None,
            "spot": spot,
            "nodes": nodes,
            "dollars_per_hour": price,
        }

    def launch(self, cluster: str, config: Mapping[str, Any], idle_minutes: int | None) -> dict[str, Any]:
        if (self.folder / "full").exists() or (_is_spot(config) and (self.folder / "full-spot").exists()):
            raise RuntimeError("no machines\nanywhere")
        self.down(cluster)
        for rank in range(config["num_nodes"]):
            self.home(cluster, rank).mkdir(parents=True)
        while (self.folder / "slow").exists():
            time.sleep(0.1)
        return self._run(cluster, config)

    def run_job(self, cluster: str, config: Mapping[str, Any], instead_of: int) -> dict[str, Any]:
        for job in json.loads((self.folder / f"{cluster}.jobs").read_text()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job, signal.SIGKILL)
        return self._run(cluster, config)

    def _run(self, cluster: str, config: Mapping[str, Any]) -> dict[str, Any]:
        jobs = []
        for rank in range(config["num_nodes"]):
            home = self.home(cluster, rank)
            env = {"HOME": str(home), "PATH": os.environ["PATH"], "SKYPILOT_NODE_RANK": str(rank)}
            with (home / "job.log").open("ab") as log:
                argv = ["bash", "-c", config["run"]]
                job = subprocess.Popen(
                    argv, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            jobs.append(job.pid)
        (self.folder / f"{cluster}.jobs").write_text(json.dumps(jobs))
        return {
            "ssh_config": "".join(self._ssh_config(cluster, rank) for rank in range(len(jobs))),
            "hosts": [self._host(cluster, rank) for rank in range(len(jobs))],
            "addresses": ["127.0.0.1"] * len(jobs),
            "offer": self._taken(len(jobs), _is_spot(config)),
            "job": jobs[0],
        }

    def status(self, cluster: str) -> str:
        return "UP" if self.home(cluster, 0).exists() else "MISSING"

    def job_runs(self, cluster: str, job: int) -> bool:
        return _lives(job)

    def launch_managed(self, config: Mapping[str, Any], name: str) -> int:
        (self.folder / "job-7").write_text(json.dumps(config))
        return 7

    def managed(self, job: int) -> dict[str, Any] | None:
        return {"status": "RECOVERING", "recoveries": 2} if (self.folder / f"job-{job}").exists() else None

    def cancel_managed(self, job: int) -> None:
        (self.folder / f"job-{job}").unlink()

    def logs(self, cluster: str, job: int) -> str:
        """Return what a job has said, once it has said something: all do, as soon as they run."""
        log, deadline = self.home(cluster, 0) / "job.log", time.monotonic() + LOST_S
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        return log.read_text()

    def down(self, cluster: str) -> None:
        end(self.folder / cluster)
        with contextlib.suppress(ChildProcessError):  # the jobs were this process's
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def home(self, cluster: str, rank: int) -> Path:
        return self.folder / cluster / f"home{rank}"

    def _host(self, cluster: str, rank: int) -> str:
        return f"{cluster}-worker{rank}" if rank else cluster

    def _ssh_config(self, cluster: str, rank: int) -> str:
        config = self.folder / f"{self._host(cluster, rank)}.sshd"
        config.write_text(
            f"HostKey {self.folder}/key\nAuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
            f"SetEnv HOME={self.home(cluster, rank)} PATH={os.environ['PATH']}\n"
        )
        return (
            f"Host {self._host(cluster, rank)}\n  User {getpass.getuser()}\n  IdentityFile {self.folder}/key\n"
            f"  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            f"  ProxyCommand {SSHD} -i -f {config}\n\n"
        )


def _is_spot(config: Mapping[str, Any]) -> bool:
    resources = config["resources"]
    return any(choice.get("use_spot") for choice in (resources, *resources.get("any_of", [])))


def end(machines: Path) -> None:
    """Lose machines: kill all that runs on them, and remove them."""
    needle = f"HOME={machines}/home".encode()
    deadline = time.monotonic() + LOST_S
    while pids := [pid for pid in _processes() if _has(pid, needle)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pids} do not die")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(machines, ignore_errors=True)
    for file in Path(f"/tmp/fglaunch-{os.getuid()}").glob(f"{machines.name}-*.sock"):
        with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(file)):  # another test may have a cluster of the same name
                file.unlink()


def _processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _has(pid: int, needle: bytes) -> bool:
    try:
        return _lives(pid) and needle in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def calls(folder: Path) -> list[dict[str, Any]]:
    """Return what was asked so far, also while somebody asks."""
    file = folder / "calls"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def make(folder: Path) -> Path:
    """Set a folder up; returns what to call instead of a Python that has SkyPilot."""
    folder.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}"\n')
    program.chmod(0o755)
    return program


def main() -> None:
    """Serve."""
    sky = FakeSky(Path(sys.argv[1]))
    for line in sys.stdin:
        with (sky.folder / "calls").open("a") as calls:
            calls.write(line)
        request = json.loads(line)
        number, action = request.pop("id"), request.pop("do")
        do: Callable[..., Any] = getattr(sky, action)
        try:
            answer = {"value": do(**request)}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps({"id": number, **answer}), flush=True)


if __name__ == "__main__":
    main()
