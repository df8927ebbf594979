"""Where processes run: one backend a file in this package, found by its name. Knows nothing of recipes or torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from cluster._queue import JobState as JobState
from cluster._queue import Queue as Queue
from cluster._queue import Request as Request


class ClusterError(Exception):
    """What was asked of a cluster cannot be had; one line, meant for the user."""


class Fewer(ClusterError):
    """There are not as many nodes as are asked for; `nodes` are those that there are."""

    def __init__(self, message: str, nodes: Sequence[Node]) -> None:
        super().__init__(message)
        self.nodes = list(nodes)


class Unreachable(ClusterError):
    """A node does not answer now. Whether its programs live is not known; it may come back."""


class CalledOff(ClusterError):
    """Machines were being rented, and are not wanted any more: see `Rented.call_off`."""


class Occupied(ClusterError):
    """Another run of the same name is at work on a node."""


class Owner(NamedTuple):
    """Whose a node's folder is: a run's identity, its name, its store's URL.

    `early`: it was begun before this was written down, and a folder that does not say so is its own.
    """

    id: str
    run: str
    store: str
    early: bool = False


class Node(NamedTuple):
    """One machine of a run.

    Its name, the address that other nodes reach it at, its working folder for the run, the interpreter that has the
    project's packages there, and the folder that programs start in: the one `fglaunch` was called in, or its copy.
    """

    name: str
    address: str
    folder: str
    python: str
    project: str


class Command(NamedTuple):
    """A program to start on a node, in its project folder.

    Output is appended to `<name>.log` in the node's working folder; `env` is added to the node's own environment.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


class Hardware(NamedTuple):
    """What of its machine is a node's own: CPU cores, and GPUs as CUDA_VISIBLE_DEVICES names them (none: CPU)."""

    cores: int
    gpus: tuple[str, ...]


class Report(NamedTuple):
    """What was found on a machine of a cluster; `problem` is empty if programs can run there."""

    node: str
    address: str
    problem: str
    python: str = ""
    cores: int = 0
    gpus: tuple[str, ...] = ()
    disk_bytes: int = 0
    shm_bytes: int = 0


class Process(Protocol):
    """A program that was started on a node.

    A node that does not answer is no dead program: `poll` and `wait` return None then, and `Cluster.silence_s` tells.
    All may raise ClusterError: the node answers, and cannot do what is asked.
    """

    @property
    def pid(self) -> int:
        """Its process ID on the node."""

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal, or None while it runs."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait for it to end; returns what `poll` would."""

    def terminate(self) -> None:
        """Ask it to stop; no error if it has ended, or its node does not answer."""

    def kill(self) -> None:
        """Kill it and everything it started; no error if it has ended.

        Afterwards `poll` tells its exit status; None: its node does not answer, and it may still run.

        Raises:
            ClusterError: some of it does not end (it waits in the kernel); says what.
        """


class Cluster(Protocol):
    """A set of nodes to run on."""

    name: str
    lasting: bool
    """Whether programs go on when whoever started them is gone."""
    shares_files: bool
    """Whether the nodes see this machine's files, under the same paths."""

    def nodes(self, run: str, count: int) -> list[Node]:
        """Return `count` nodes for a run, the same ones for the same run where possible; leaves no trace on them.

        Raises:
            Fewer: so many cannot be had, but some; others may be there later.
            ClusterError: so many cannot be had.
        """

    def claim(self, node: Node, owner: Owner) -> None:
        """Have a node's working folder be a run's own; what another of its name has left there is removed.

        Where machines are rented, also they are the run's then; those that are not rented yet have no folder.

        Raises:
            Occupied: that other run is at work there; nothing has changed.
            ClusterError: the node does not answer, or cannot be written to.
        """

    def make_ready(self, node: Node) -> None:
        """Make a node's working folder, if it is not there yet; programs can be started then.

        Raises:
            ClusterError: it cannot be made.
        """

    def rendezvous_node(self, run: str) -> Node | None:
        """Return a node for a run's agents to meet on that never trains; None: they meet on one of its own.

        Raises:
            ClusterError: it cannot be had.
        """

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """Return what each node of a run may use; nodes of one machine share it in equal parts.

        Raises:
            Unreachable: one does not answer.
        """

    def silence_s(self, node: Node) -> float:
        """Return for how many seconds a node has not answered; 0 if it does."""

    def free_port(self, node: Node) -> int:
        """Return a TCP port that nothing listens on.

        Raises:
            Unreachable: the node does not answer.
        """

    def port_in_use(self, node: Node, port: int) -> bool:
        """Tell whether something listens on a TCP port (1 to 65535) of a node.

        Raises:
            ClusterError: this user may not listen there.
        """

    def start(self, node: Node, command: Command) -> Process:
        """Start a program on a node.

        Raises:
            ClusterError: it cannot be started.
            Unreachable: it may or may not have been started; `find` tells, once the node answers.
        """

    def find(self, node: Node, name: str) -> Process | None:
        """Return the newest program that was started under a name and still runs; where nothing lasts, None.

        Raises:
            Unreachable: the node does not answer.
        """

    def size(self, node: Node, name: str) -> int:
        """Return how many bytes a file of the node's folder has; 0 if it is not there (yet).

        Raises:
            Unreachable: the node does not answer at once.
        """

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """Return a file of the node's folder from `offset` on.

        Empty if it is not there (yet), or the node does not answer.
        """


@runtime_checkable
class Inspectable(Protocol):
    """What a cluster may offer beside `Cluster`: a look at all its machines, for `fglaunch clusters --check`."""

    def inspect(self) -> list[Report]:
        """Look at each machine; one that does not answer is a report, no error."""


@runtime_checkable
class Furnished(Protocol):
    """What a cluster may offer beside `Cluster`: it makes the environments of its nodes."""

    @property
    def extras(self) -> tuple[str, ...] | None:
        """Which of our own extras they hold; None: the user's settings say what is there."""


class Offer(NamedTuple):
    """Machines that could be rented: where, of which kind, how many, and what they cost together, in US dollars."""

    where: str
    machine: str
    nodes: int
    spot: bool
    dollars_per_hour: float

    def __str__(self) -> str:
        kind = "spot" if self.spot else "on demand"
        return f"{self.dollars_per_hour:.2f} $/h: {self.nodes} x {self.machine} ({kind}) in {self.where}"


class Held(NamedTuple):
    """Machines that are rented for a run: what was taken, and a number that those before and after do not have."""

    offer: Offer
    number: int


@runtime_checkable
class Versioned(Protocol):
    """What a cluster may offer beside `Cluster`: which code a node runs, where each has a copy."""

    def version(self, node: Node) -> str:
        """Return what tells the code of a node that is ready from other code; empty: there is one for all.

        Raises:
            ClusterError: it does not answer.
        """


@runtime_checkable
class Rented(Protocol):
    """What a cluster may offer beside `Cluster`: machines rented for a run, once its first node is made ready."""

    def offers(self, count: int, *, spot: bool | None = None) -> list[Offer]:
        """Return what `count` nodes could be rented as, in the order in which it would be tried; rents nothing.

        `spot`: of this kind only, whatever the settings say.

        Raises:
            ClusterError: nothing fits, or nobody can be asked.
        """

    def renew(self, node: Node) -> Node:
        """Return a node as it is now: one that was lost is rented anew, maybe as another machine at another address.

        Raises:
            ClusterError: nothing is to be had.
        """

    def held(self, run: str) -> Held | None:
        """Return what is rented for a run; None: nothing, or it is known to be lost."""

    def call_off(self, run: str) -> None:
        """Rent no machines for a run from now on: whoever is about to meets `CalledOff`, when what was begun is ended.

        Waits for nothing, so that a handler of signals may call it.
        """

    def give_back(self, run: str) -> None:
        """End the rent of a run's machines; no error if there is none.

        Raises:
            ClusterError: they may still be rented.
        """


@runtime_checkable
class TwoKinds(Rented, Protocol):
    """What a cluster that rents may offer: spot machines, which may be taken away, and on-demand ones."""

    def prefer(self, run: str, *, spot: bool) -> None:
        """Rent machines of this kind for a run from now on, whatever the settings say; what is rented stays."""


def equal_share(machine: Hardware, index: int, sharers: int) -> Hardware:
    """Return what node `index` of `sharers` nodes on one machine may use of it."""
    gpus = len(machine.gpus) // sharers
    return Hardware(max(1, machine.cores // sharers), machine.gpus[index * gpus : (index + 1) * gpus])


def kinds() -> list[str]:
    """Return the names of the backends: the modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def check_project(project: Path) -> None:
    """Refuse to start programs in a folder that is not here, as when a run is resumed from another machine.

    Raises:
        ClusterError
    """
    if not project.is_dir():
        raise ClusterError(f"{project}, where the run was begun, is not on this machine: put a copy of its code there")


def open_cluster(kind: str, settings: Mapping[str, Any], project: Path, work: Path) -> Cluster:
    """Open a cluster through the `open_cluster(settings, project, work)` of its backend's module.

    Args:
        kind: the backend.
        settings: what the user's configuration says of it.
        project: the folder to run in.
        work: where this machine keeps the working folders of runs.

    Raises:
        ClusterError: no such backend, or one that cannot make sense of its settings.
    """
    if kind not in kinds():
        raise ClusterError(f"no cluster backend {kind!r}; there are: {', '.join(kinds())}")
    found: Cluster = importlib.import_module(f"cluster.{kind}").open_cluster(settings, project, work)
    return found


def open_queue(kind: str, settings: Mapping[str, Any], project: Path, work: Path) -> Queue | None:
    """Open a backend's queue, as `open_cluster` opens its nodes; None if it has none.

    Raises:
        ClusterError: no such backend, or one that cannot make sense of its settings.
    """
    if kind not in kinds():
        raise ClusterError(f"no cluster backend {kind!r}; there are: {', '.join(kinds())}")
    backend = importlib.import_module(f"cluster.{kind}")
    return backend.open_queue(settings, project, work) if hasattr(backend, "open_queue") else None
