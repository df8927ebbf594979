"""What `benchmarks.recovery` strikes: a run on two nodes of one process each, by torchrun or by fglaunch.

The nodes are this machine, or two hosts: network namespaces with an address and an sshd each (`tests.testbed.netns`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.processes import children, kill, marked, with_words
from tests.testbed.netns import Hosts

_TUNED = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
_RECIPE = ("recipes/quickstart.py", "--set", "epochs=100000", "--set", "evaluate.every_epochs=0")


class Job(Protocol):
    """A run on two nodes."""

    def agent(self) -> int:
        """Return the process ID of the struck node's agent."""

    def worker(self) -> int:
        """Return the process ID of its worker."""

    def node(self) -> list[int]:
        """Return the process IDs of all that runs on it."""

    def steps(self) -> list[tuple[float, int, int]]:
        """Return (Unix time, step, incarnation) of steps so far; an incarnation's first step is among them."""

    def end(self) -> None:
        """Kill all of it."""


class Torchrun:
    """torchrun's agents on the hand-written loop."""

    def __init__(self, folder: Path, hosts: Hosts | None, *, tuned: bool) -> None:
        self._folder = folder
        own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if tuned else {}
        env = os.environ | {"OMP_NUM_THREADS": "1"} | own | ({"GLOO_SOCKET_IFNAME": "eth0"} if hosts else {})
        addresses = [hosts.ip_of(name) for name in hosts.names] if hosts else ["127.0.0.1"] * 2
        endpoint = f"{addresses[0]}:{29400 if hosts else _free_port()}"
        self._agents = []
        for number, address in enumerate(addresses):
            settings = f"is_host={1 - number}" + (f",{_TUNED}" if tuned else "")
            argv = [
                *(["ip", "netns", "exec", hosts.namespace(hosts.names[number])] if hosts else []),
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
                *("--rdzv-id=toy", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
                *(f"--rdzv-conf={settings}", f"--local-addr={address}", "--max-restarts=100"),
                *(["--monitor-interval=0.02"] if tuned else []),
                *("-m", "benchmarks.recovery_peer", str(folder)),
            ]
            with (folder / f"agent{number}.log").open("w") as log:
                self._agents.append(subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True))

    def agent(self) -> int:
        """See `Job`."""
        return self._agents[1].pid

    def worker(self) -> int:
        """See `Job`."""
        return children(self.agent())[0]

    def node(self) -> list[int]:
        """See `Job`."""
        return [self.agent(), *children(self.agent())]

    def steps(self) -> list[tuple[float, int, int]]:
        """See `Job`."""
        return [(s["time"], s["step"], s["incarnation"]) for s in _lines(self._folder / "steps.jsonl")]

    def end(self) -> None:
        """See `Job`; a worker that outlived its agent is found by its command line."""
        kill([p for a in self._agents for p in (a.pid, *children(a.pid))])
        kill(with_words(str(self._folder), "benchmarks.recovery_peer"))
        for agent in self._agents:
            agent.wait(30)


class Ours:
    """fglaunch, as a user starts it."""

    def __init__(self, folder: Path, hosts: Hosts | None) -> None:
        self._work = folder / "work"
        self._names = hosts.names if hosts else ["node0", "node1"]
        places = {"STORE": f"file://{folder}/store", "WORK": str(self._work), "MEMORY": str(folder / "memory")}
        places["CLUSTERS"] = str(folder / "clusters.toml")
        (folder / "clusters.toml").write_text(_lab(hosts, self._work, folder / "memory") if hosts else "")
        env = os.environ | {f"FGLAUNCH_{k}": v for k, v in places.items()}
        argv = [sys.executable, "-m", "launcher", *_RECIPE, "--nodes", "1:2", "--gpus", "1", "--name", "toy"]
        argv += ["--cluster", "lab"] if hosts else []
        with (folder / "launcher.log").open("w") as log:
            self._launcher = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    def _on_node(self, *words: str) -> list[int]:
        return with_words(str(self._work / "toy" / self._names[1]), *words)

    def agent(self) -> int:
        """See `Job`."""
        return self._on_node("fgtrain.agent")[0]

    def worker(self) -> int:
        """See `Job`."""
        (agent,) = self._on_node("fgtrain.agent")
        leaders = [p for p in self._on_node("fgtrain.worker") if p != agent and os.getpgid(p) == p]
        return leaders[0]

    def node(self) -> list[int]:
        """See `Job`."""
        return marked(f"{self._work}/toy/{self._names[1]}#")

    def steps(self) -> list[tuple[float, int, int]]:
        """See `Job`."""
        found, incarnation = [], 0
        events = [e for name in self._names for e in _lines(self._work / "toy" / name / "events.jsonl")]
        for event in sorted(events, key=lambda e: float(e["time"])):
            if event["event"] == "attempt":
                incarnation = event["attempt"]
            elif event["event"] == "step":
                found.append((event["time"], event["step"], incarnation))
        return found

    def end(self) -> None:
        """See `Job`."""
        kill([self._launcher.pid])
        self._launcher.wait(30)
        kill(marked(f"{self._work}/"))


def _lab(hosts: Hosts, work: Path, memory: Path) -> str:
    """Return a `clusters.toml` for two hosts that share this machine's files."""
    return (
        f'[lab]\nkind = "ssh"\nhosts = {hosts.names!r}\nssh_config = "{hosts.config}"\nshared = true\n'
        f'work = "{work}"\nenv = {{ FGLAUNCH_MEMORY = "{memory}" }}\n'
    )


OURS = "fglaunch"
PEERS: dict[str, Callable[[Path, Hosts | None], Job]] = {
    "torchrun": lambda folder, hosts: Torchrun(folder, hosts, tuned=False),
    "tuned": lambda folder, hosts: Torchrun(folder, hosts, tuned=True),
}
SYSTEMS: dict[str, Callable[[Path, Hosts | None], Job]] = {**PEERS, OURS: Ours}


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    found = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line, of somebody who was killed
            found.append(json.loads(line))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def strike(job: Job, fault: str, hosts: Hosts | None) -> None:
    """Do it."""
    match fault:
        case "worker":
            os.kill(job.worker(), signal.SIGKILL)
        case "agent":
            os.kill(job.agent(), signal.SIGKILL)
        case "node":
            kill(job.node())
        case "silence":
            kill(job.node(), signal.SIGSTOP)
        case "network":
            assert hosts is not None
            hosts.cut(hosts.names[1])
