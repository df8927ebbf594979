"""Nodes and programs that are only played, on a clock that tests move: no process, no socket, no waiting.

A program is a script, a generator that yields how long it does nothing (in seconds) and returns its exit status:

    def agent(program: Program) -> Script:
        program.write(b"begun")
        yield 10.0
        return 0

    clock = Clock()
    cluster = FakeCluster(clock, ["a", "b"], {"agent": agent}, [Event(5.0, "lose", "b")])
    ...
    clock.advance(5.0)

SIGTERM is `Terminated`, raised where the script waits.
"""

from __future__ import annotations

import heapq
import itertools
import json
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster import ClusterError, Command, Fewer, Hardware, Node, Occupied, Owner, Report, Unreachable
from cluster import _host_claims as claims

Script = Generator[float, None, int]
_HARDWARE = Hardware(8, ())


class Terminated(Exception):  # noqa: N818  (a signal, no error)
    """SIGTERM, in a script."""


class Clock:
    """A time in seconds that stands still until it is moved, or follows another."""

    def __init__(self, follow: Callable[[], float] | None = None) -> None:
        """Begin at 0; with `follow`, go on as that does."""
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._follow = follow
        self._origin = follow() if follow else 0.0

    def now(self) -> float:
        """Return the time; what is due by then has happened."""
        if self._follow:
            self._move(self._follow() - self._origin)
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due happens in its order."""
        if self._follow:
            time.sleep(seconds)
            self.now()
        else:
            self._move(self._now + seconds)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something happen at a time, or now if that is past."""
        heapq.heappush(self._due, (max(when, self._now), next(self._numbers), action))

    def next_due(self) -> float | None:
        """Return when the next thing happens."""
        return self._due[0][0] if self._due else None

    def _move(self, to: float) -> None:
        while self._due and self._due[0][0] <= to:
            when, _, action = heapq.heappop(self._due)
            self._now = max(self._now, when)
            action()
        self._now = max(self._now, to)


class Event(NamedTuple):
    """What happens to a node at a time: it joins, is lost with all that runs on it, or is cut off for a while."""

    time_s: float
    what: Literal["join", "lose", "cut", "heal"]
    node: str


class Program:
    """A program that is played; the `Process` of this cluster."""

    def __init__(self, machine: Machine, command: Command, clock: Clock, number: int) -> None:
        self.name, self.argv, self.env = command.name, command.argv, dict(command.env)
        self.code: int | None = None
        self._machine, self._clock, self._pid = machine, clock, number
        self._told: int | None = None
        self._script: Script | None = None
        self._turn = 0

    def write(self, data: bytes) -> None:
        """Add to the program's log."""
        self.append(f"{self.name}.log", data)

    def append(self, file: str, data: bytes) -> None:
        """Add to a file of the node's folder."""
        self._machine.files[file] = self._machine.files.get(file, b"") + data

    def play(self, script: Script) -> None:
        """Begin; what comes before the first wait happens at once."""
        self._script = script
        self._go_on(self._turn, lambda: next(script))

    def end(self, code: int) -> None:
        """Be over, unless it is already."""
        if self.code is None:
            self.code, self._turn = code, self._turn + 1

    def _go_on(self, turn: int, step: Callable[[], float]) -> None:
        if self.code is not None or turn != self._turn:  # ended, or woken by a signal meanwhile
            return
        self._turn += 1
        try:
            sleep_s = step()
        except StopIteration as over:
            self.end(int(over.value or 0))
        except Terminated:
            self.end(-signal.SIGTERM)
        else:
            script, mine = self._script, self._turn
            assert script is not None
            self._clock.at(self._clock.now() + sleep_s, lambda: self._go_on(mine, lambda: next(script)))

    # -- as a Process ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._pid

    def poll(self) -> int | None:
        """See `Process`."""
        self._clock.now()
        if self._machine.answers:
            self._told = self.code
        return self._told

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`; lets the clock go on until then."""
        deadline = self._clock.now() + timeout_s
        while self.poll() is None and self._clock.now() < deadline:
            due = self._clock.next_due()
            until = deadline if due is None else min(due, deadline)
            self._clock.advance(max(0.0, until - self._clock.now()))
        return self.poll()

    def terminate(self) -> None:
        """See `Process`."""
        script = self._script
        if self.poll() is None and self._machine.answers and script:
            self._go_on(self._turn, lambda: script.throw(Terminated()))

    def kill(self) -> None:
        """See `Process`."""
        self._clock.now()
        if self._machine.answers:
            self.end(-signal.SIGKILL)


class Machine:
    """What a node is made of: whether it is there and answers, its files of one run, its programs."""

    def __init__(self) -> None:
        self.there = self.linked = True
        self.silent_since = 0.0
        self.files: dict[str, bytes] = {}
        self.programs: list[Program] = []

    @property
    def answers(self) -> bool:
        """Whether the launching side can talk to it."""
        return self.there and self.linked

    def lose(self) -> None:
        """Be gone, with all that is on it."""
        self.there = False
        self.files = {}
        for program in self.programs:
            program.end(-signal.SIGKILL)


class FakeCluster:
    """Nodes that come and go by a schedule."""

    name = "fake"
    lasting = True
    shares_files = True

    def __init__(
        self,
        clock: Clock,
        names: Sequence[str],
        scripts: Mapping[str, Callable[[Program], Script]],
        events: Sequence[Event] = (),
        hardware: Hardware = _HARDWARE,
    ) -> None:
        """Make one.

        Args:
            clock: what its time is told by.
            names: the nodes; one whose first event is that it joins is not there before.
            scripts: what programs do, by the name they are started under or by the last word of their command line.
            events: what happens to nodes.
            hardware: of each node.
        """
        self.clock, self._scripts, self._hardware = clock, scripts, hardware
        self.names = list(names)
        self._machines: dict[tuple[str, str], Machine] = {}
        self._states: dict[str, Machine] = {name: Machine() for name in names}
        self._numbers = itertools.count(1000)
        first = {e.node: e.what for e in sorted(events, reverse=True)}
        for name in names:
            self._states[name].there = first.get(name) != "join"
        for event in sorted(events):
            clock.at(event.time_s, lambda event=event: self.happen(event.what, event.node))  # type: ignore[misc]

    def happen(self, what: str, name: str) -> None:
        """Have something happen to a node now, see `Event`."""
        for machine in [self._states[name], *(m for (_, n), m in self._machines.items() if n == name)]:
            if machine.answers:
                machine.silent_since = self.clock.now()
            if what == "lose":
                machine.lose()
            else:
                machine.there = machine.there or what == "join"
                machine.linked = {"cut": False, "heal": True}.get(what, machine.linked)

    def programs(self, run: str, node: str) -> list[Program]:
        """Return all that was ever started on a run's node."""
        return self._machine(run, node).programs

    def _machine(self, run: str, name: str) -> Machine:
        if (run, name) not in self._machines:
            fresh, state = Machine(), self._states[name]
            fresh.there, fresh.linked, fresh.silent_since = state.there, state.linked, state.silent_since
            self._machines[run, name] = fresh
        return self._machines[run, name]

    def _of(self, node: Node) -> Machine:
        self.clock.now()
        return self._machine(Path(node.folder).parent.name, Path(node.folder).name)

    def _answering(self, node: Node) -> Machine:
        machine = self._of(node)
        if not machine.answers:
            raise Unreachable(f"{node.name} does not answer")
        return machine

    # -- as a Cluster ---------------------------------------------------------------------------------------------

    def nodes(self, run: str, count: int) -> list[Node]:
        """See `Cluster`: those that are there, in order."""
        self.clock.now()
        there = [name for name in self.names if self._states[name].answers]
        found = [Node(n, n, f"/fake/{run}/{n}", "python", "/fake/project") for n in there[:count]]
        if len(found) < count:
            raise Fewer(f"{count} nodes are asked for, and there are {len(found)}", found)
        return found

    def claim(self, node: Node, owner: Owner) -> None:
        """See `Cluster`."""
        machine = self._answering(node)
        found = claims.parse(machine.files.get(claims.FILE, b""))
        if found.get("id") != owner.id:
            if any(p.code is None for p in machine.programs) and (found or not owner.early):
                raise Occupied(claims.refusal(node.name, found))
            machine.files = {} if found else machine.files
        machine.files[claims.FILE] = json.dumps(owner._asdict()).encode()

    def make_ready(self, node: Node) -> None:
        """See `Cluster`."""
        self._answering(node)

    def rendezvous_node(self, run: str) -> None:
        """See `Cluster`."""

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """See `Cluster`."""
        return [self._hardware for _ in nodes]

    def silence_s(self, node: Node) -> float:
        """See `Cluster`."""
        machine = self._of(node)
        return 0.0 if machine.answers else self.clock.now() - machine.silent_since

    def inspect(self) -> list[Report]:
        """See `Inspectable`."""
        self.clock.now()
        cores, gpus = self._hardware
        states = ((n, self._states[n].answers) for n in self.names)
        return [
            Report(n, n, "", "played", cores, gpus) if up else Report(n, n, "it does not answer") for n, up in states
        ]

    def free_port(self, node: Node) -> int:
        """See `Cluster`."""
        self._answering(node)
        return next(self._numbers)

    def port_in_use(self, node: Node, port: int) -> bool:
        """See `Cluster`."""
        self._answering(node)
        return False

    def start(self, node: Node, command: Command) -> Program:
        """See `Cluster`."""
        machine = self._answering(node)
        play = self._scripts.get(command.name) or self._scripts.get(command.argv[-1])
        if play is None:
            raise ClusterError(f"cannot start {command.argv[0]} on {node.name}: nothing says how to play it")
        program = Program(machine, command, self.clock, next(self._numbers))
        machine.programs.append(program)
        program.play(play(program))
        return program

    def find(self, node: Node, name: str) -> Program | None:
        """See `Cluster`."""
        running = [p for p in self._answering(node).programs if p.name == name and p.code is None]
        return running[-1] if running else None

    def size(self, node: Node, name: str) -> int:
        """See `Cluster`."""
        return len(self._answering(node).files.get(name, b""))

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """See `Cluster`."""
        machine = self._of(node)
        return machine.files.get(name, b"")[offset:] if machine.answers else b""


def canned(after_s: float, code: int) -> Callable[[Program], Script]:
    """Return how to play a program that does nothing for a while and ends."""

    def play(program: Program) -> Script:
        yield after_s
        return code

    return play


def open_cluster(settings: Mapping[str, Any], project: Path, work: Path) -> FakeCluster:
    """See `cluster.open_cluster`: `nodes` (how many) and `programs` (name -> [seconds, exit status])."""
    count, programs = settings.get("nodes", 2), settings.get("programs", {})
    wrong = next((k for k in settings if k not in ("nodes", "programs")), None)
    if wrong is not None:
        raise ClusterError(f"clusters.toml: fake has no setting {wrong!r}; there are: nodes, programs")
    if type(count) is not int or count < 1:
        raise ClusterError(f"clusters.toml: nodes is {count!r}, and should be a whole number from 1")
    try:
        scripts = {str(name): canned(float(after), int(code)) for name, (after, code) in programs.items()}
    except (AttributeError, TypeError, ValueError):
        raise ClusterError("clusters.toml: programs should look like programs = { agent = [10.0, 0] }") from None
    return FakeCluster(Clock(time.monotonic), [f"fake{i}" for i in range(count)], scripts)
