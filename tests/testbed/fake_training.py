"""A cluster in this process, by a clock that tests move, and a training on it that takes a step a second.

Everything the supervisor sees is made by these: processes, their files, and objects in a store.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Sequence
from itertools import count

from cluster import ClusterError, Command, Fewer, Hardware, Held, Node, Occupied, Offer, Owner, Unreachable
from cluster import _host_claims as claims
from fgtrain.plan import World
from fgtrain.pulse import FILE, Beat, Phase, Stage, encode
from fgtrain.runstore import Attempt, Failure, Result, RunStore

PIDS = count(1000)


class FakeClock:
    """Moves when somebody sleeps."""

    def __init__(self) -> None:
        self._now = 1000.0
        self.watchers: list[Callable[[], None]] = []

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + 1e9

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        for watcher in list(self.watchers):
            watcher()


class FakeProcess:
    def __init__(self, cluster: FakeCluster, node: Node, command: Command) -> None:
        self.cluster, self.node, self.command = cluster, node, command
        self.pid, self.code = next(PIDS), None if command.name in ("agent", "rendezvous") else 0
        self.started: float = 0.0
        self.asked = False  # to leave at the next step boundary
        self.endpoint = ""  # of an agent: where it meets the others
        self.trouble = ""  # what its node says, which answers, whenever it is asked for this program

    def poll(self) -> int | None:
        self._refuse()
        return self.code

    def _refuse(self) -> None:
        if self.trouble:
            raise ClusterError(f"{self.node.name}: {self.trouble}")

    def wait(self, timeout_s: float) -> int | None:
        return self.code

    def terminate(self) -> None:
        self._refuse()
        if self.cluster.gentle and self.command.name == "agent":
            self.asked = True
        elif not self.cluster.cut_off and self.node.name not in self.cluster.quiet:
            self.end(0 if self.command.name == "rendezvous" else -signal.SIGTERM)

    def kill(self) -> None:
        self._refuse()
        if not self.cluster.cut_off and self.node.name not in self.cluster.quiet:
            self.end(-signal.SIGKILL)

    def end(self, code: int) -> None:
        self.code = code if self.code is None else self.code


class FakeCluster:
    """As many nodes as it is told; what runs on them outlives the supervisor if it is `lasting`."""

    def __init__(self, clock: FakeClock, hosts: int, *, lasting: bool = True) -> None:
        self.name, self.lasting, self.clock = "fake", lasting, clock
        self.shares_files = True
        self.hosts = [f"host{i}" for i in range(hosts)]
        self.down: set[str] = set()
        self.quiet: set[str] = set()  # their programs go on, but they do not answer
        self.gentle = False  # agents that are told to end take a last snapshot first
        self.cut_off = False  # nothing that the supervisor does reaches a node: it is dead
        self.full: set[str] = set()  # cannot be made ready
        self.gpus: dict[str, tuple[str, ...]] = {}
        self.refuses: dict[str, str] = {}  # by host, the program that cannot be started there
        self.reports: dict[str, dict[str, object]] = {}
        self.processes: list[FakeProcess] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self._ports = count(20000)
        self._quiet_since: dict[str, float] = {}

    def nodes(self, run: str, count: int) -> list[Node]:
        found = [Node(h, h, f"/{run}/{h}", "python", "/") for h in self.hosts[:count]]
        if count > len(self.hosts):
            raise Fewer(f"{count} nodes are more than there are", found)
        return found

    def claim(self, node: Node, owner: Owner) -> None:
        self._reach(node)
        other = self.running("agent", node) + self.running("rendezvous", node)
        found = claims.parse(self.files.get((node.folder, claims.FILE), b""))
        if found.get("id") != owner.id and other and (found or not owner.early):
            raise Occupied(claims.refusal(node.name, found))
        if found.get("id") not in (None, owner.id):
            self.files = {key: data for key, data in self.files.items() if key[0] != node.folder}
        self.files[node.folder, claims.FILE] = json.dumps(owner._asdict()).encode()

    def make_ready(self, node: Node) -> None:
        if node.name in self.full:
            raise ClusterError(f"{node.name}: no room on its disk")

    def rendezvous_node(self, run: str) -> Node | None:
        return None

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        return [Hardware(2, self.gpus.get(node.name, ())) for node in nodes]

    def silence_s(self, node: Node) -> float:
        if node.name not in self.quiet:
            self._quiet_since.pop(node.name, None)
            return 0.0
        return self.clock.now() - self._quiet_since.setdefault(node.name, self.clock.now() - 1.0)

    def free_port(self, node: Node) -> int:
        self._reach(node)
        return next(self._ports)

    def port_in_use(self, node: Node, port: int) -> bool:
        return False

    def start(self, node: Node, command: Command) -> FakeProcess:
        self._reach(node)
        if self.refuses.get(node.name) == command.name:
            raise ClusterError(f"{node.name}: {command.name} cannot be started")
        process = FakeProcess(self, node, command)
        process.started = self.clock.now()
        if command.name == "agent":
            process.endpoint = next((w for w in command.argv if w.startswith("--rdzv-endpoint=")), "")
        elif command.name == "endpoint" and (agent := self.find(node, "agent")):
            agent.endpoint = f"--rdzv-endpoint={command.argv[4]}"
        self.processes.append(process)
        if command.name == "check":
            key = command.argv[command.argv.index("--key") + 1]
            fine = {"time": self.clock.time(), "writable": True, "disk_free": 1 << 40, "shm_free": 1 << 30}
            report = {**fine, "device_files": 0, "devices": [], "key": key} | self.reports.get(node.name, {})
            self.files[node.folder, "check.json"] = json.dumps(report).encode()
        return process

    def find(self, node: Node, name: str) -> FakeProcess | None:
        return next((p for p in reversed(self.running(name)) if p.node.name == node.name), None)

    def size(self, node: Node, name: str) -> int:
        if node.name in self.quiet:
            raise Unreachable(f"{node.name} cannot be reached")
        return len(self.files.get((node.folder, name), b""))

    def read(self, node: Node, name: str, offset: int) -> bytes:
        return b"" if node.name in self.quiet else self.files.get((node.folder, name), b"")[offset:]

    # -- for tests ------------------------------------------------------------------------------------------------

    def running(self, name: str, node: Node | None = None) -> list[FakeProcess]:
        running = [p for p in self.processes if p.command.name == name and p.code is None]
        return [p for p in running if node is None or p.node.folder == node.folder]

    def started(self, name: str, host: str | None = None) -> list[FakeProcess]:
        return [p for p in self.processes if p.command.name == name and host in (None, p.node.name)]

    def append(self, node: Node, name: str, text: str) -> None:
        self.files[node.folder, name] = self.files.get((node.folder, name), b"") + text.encode()

    def _reach(self, node: Node) -> None:
        if node.name in self.down | self.quiet or self.cut_off:
            raise Unreachable(f"{node.name} cannot be reached")


class RentingCluster(FakeCluster):
    """Machines of two kinds for rent. While `none` names a kind, that is not to be had.

    `dollars` are what an hour of a machine costs, by kind, at the next renting, which takes `launch_s`.
    """

    def __init__(self, clock: FakeClock, hosts: int) -> None:
        super().__init__(clock, hosts)
        self.none: set[str] = set()
        self.rented: list[tuple[float, str]] = []  # when, and which kind
        self.dollars = {"spot": 3600.0, "on-demand": 7200.0}
        self.launch_s = 0.0
        self._spot, self._held = True, ""
        self._one = threading.Lock()
        self._offer: Offer | None = None

    def prefer(self, run: str, *, spot: bool) -> None:
        self._spot = spot

    def held(self, run: str) -> Held | None:
        return Held(self._offer, len(self.rented)) if self._held and self._offer else None

    def offers(self, count: int, *, spot: bool | None = None) -> list[Offer]:
        return []

    def give_back(self, run: str) -> None:
        self._held = ""

    def call_off(self, run: str) -> None:
        pass

    def renew(self, node: Node) -> Node:
        self.make_ready(node)
        return node

    def make_ready(self, node: Node) -> None:
        with self._one:
            self._have()

    def _have(self) -> None:
        kind = "spot" if self._spot else "on-demand"
        if not self._held:
            if kind in self.none:
                raise ClusterError(f"no {kind} machines")
            if self.launch_s:
                self.clock.sleep(self.launch_s)
            self._held = kind
            self._offer = Offer("here", "machine", 2, kind == "spot", 2 * self.dollars[kind])
            self.rented.append((self.clock.now(), kind))

    def take_away(self) -> None:
        """Everything that is rented is lost."""
        self._held = ""
        for process in self.processes:
            process.end(-signal.SIGKILL)


class FakeTraining:
    """The workers of a run: an attempt begins a second after all agents are there; a commit every 5 steps.

    `faults` maps a step to what happens when it has been taken; each call of one is one time it was met.
    """

    def __init__(self, cluster: FakeCluster, runs: RunStore, world: World, steps: int) -> None:
        self._cluster, self._runs, self._world, self._steps = cluster, runs, world, steps
        self.faults: dict[int, Callable[[FakeTraining], None]] = {}
        self.spoils: dict[str, Callable[[FakeTraining, int], None]] = {}  # by host, what its rank does at once
        self.grows = False  # who comes later is let in
        self.commits = True
        self.attempt = self.committed = 0
        self.step: int | None = None
        self.frozen: set[int] = set()
        self.out: set[int] = set()  # process IDs of agents that are silent to the others
        self._members: list[FakeProcess] = []
        self._since = cluster.clock.now()
        self._ticks = 0
        self.began: list[tuple[float, int]] = []  # attempts: when, at which step
        cluster.clock.watchers.append(self._move)

    def fail(self, message: str, rank: int = 0, kind: str = "error") -> None:
        """One rank raises; its worker group ends."""
        assert self.step is not None
        node = self._members[rank].node
        now = self._cluster.clock.time()
        failure = Failure(
            attempt=self.attempt, rank=rank, time=now, kind=kind, message=message,
            traceback=f"Traceback of {message}", step=self.step, folder=node.folder,
        )  # fmt: skip
        self._runs.write(f"errors/{self.attempt:05d}-{rank:05d}.json", failure)
        self.die(1, rank)

    def die(self, code: int, rank: int = 0) -> None:
        """A worker ends; the others follow."""
        for number, agent in enumerate(self._members):
            status = code if number == rank else 1
            line = f"failed (exitcode: {status}) local_rank: 0 (pid: 7) of binary: python\n"
            self._cluster.append(agent.node, "agent.log", line)
        self.step = None
        self._since = self._cluster.clock.now()

    def lose(self, rank: int) -> None:
        """An agent is killed, and the attempt ends with it."""
        agent = self._members[rank]
        self.step = None
        agent.end(-signal.SIGKILL)

    def lose_store(self) -> None:
        """The store that agents meet in is killed, and the attempt ends with it."""
        self._cluster.running("rendezvous")[0].end(-signal.SIGKILL)
        self.step, self._since = None, self._cluster.clock.now()

    def _move(self) -> None:
        now = self._cluster.clock.now()
        agents = self._cluster.running("agent")
        self._strike_out()
        agents = [a for a in agents if a.pid not in self.out]
        if self.step is not None and any(a.code is not None for a in self._members):
            self.step = None
        if self.step is None:
            self._maybe_begin(now, agents)
        elif self.grows and len(self._members) < min(len({a.node.name for a in agents}), self._world.most):
            self._commit()
            self.step, self._since = None, now
        elif now - self._since >= 1.0:
            self._since = now
            self._ticks += 1
            if not self.frozen:
                self._advance()
        if self.step is not None:
            self._beat()

    def _strike_out(self) -> None:
        silent = [a.node.name for a in self._members if a.pid in self.out]
        if self.step is None or not silent:
            return
        for agent in self._members:
            if agent.pid not in self.out:
                line = f"02:08:48 agent {agent.pid}: {', '.join(silent)} silent for 3.0 s\n"
                self._cluster.append(agent.node, "agent.log", line)
        self.step = None

    def _maybe_begin(self, now: float, agents: list[FakeProcess]) -> None:
        here = {a.node.name: a for a in agents}
        endpoints = {a.endpoint for a in agents}
        if len(here) < self._world.nodes or len(endpoints) > 1 or not self._cluster.running("rendezvous"):
            self._since = now
        elif now - self._since >= 1.0:
            self._members = list(here.values())[: self._world.most]
            self.attempt += 1
            self.step, self._since, self.frozen = self.committed, now, set()
            self.began.append((now, self.committed))
            for rank, agent in enumerate(self._members):
                line = f"02:08:48 agent {agent.pid}: round {self.attempt}: node rank {rank} of {len(here)}\n"
                self._cluster.append(agent.node, "agent.log", line)
            record = Attempt(attempt=self.attempt, step=self.step, world=self._world.size, started=now)
            self._runs.create(f"attempts/{self.attempt:05d}.json", record)
            self._event("attempt", attempt=self.attempt, step=self.step, steps=self._steps, world=self._world.size)
            for rank, agent in enumerate(self._members):
                if self.step is not None and agent.node.name in self.spoils:
                    self.spoils[agent.node.name](self, rank)

    def _advance(self) -> None:
        assert self.step is not None
        self.step += 1
        self._event("step", step=self.step)
        if self.commits and self.step % 5 == 0:
            self._commit()
        if self.step >= self._steps:
            self._runs.write("result.json", Result(step=self.step, weights="", last={}, best={}, bad_images=0))
            for agent in self._members:
                agent.end(0)
        elif any(agent.asked for agent in self._members):
            self._leave()
        elif fault := self.faults.get(self.step):
            fault(self)

    def _leave(self) -> None:
        assert self.step is not None
        self._commit()
        for agent in self._members:
            agent.end(75)

    def _commit(self) -> None:
        assert self.step is not None
        self.committed = self.step
        self._runs.store.put(self._runs.key(f"manifests/{self.step:010d}-{self.attempt:05d}"), b"")
        self._event("snapshot", step=self.step, bytes_new=0)

    def _event(self, kind: str, **fields: object) -> None:
        line = json.dumps({"event": kind, "time": self._cluster.clock.time(), **fields})
        self._cluster.append(self._members[0].node, "events.jsonl", line + "\n")

    def _beat(self) -> None:
        assert self.step is not None
        for rank, agent in enumerate(self._members):
            ticks = 0 if rank in self.frozen else self._ticks
            ids = (rank, self.attempt, agent.pid, self.step, ticks, 0.1, "", self.began[-1][1])
            beat = Beat(0, Phase.STEP, Stage.EXCHANGE, *ids)
            self._cluster.files[agent.node.folder, FILE] = encode(beat)
