"""Where processes run: one backend a file in this package, found by its name. Knows nothing of recipes or torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class ClusterError(Exception):
    """What was asked of a cluster cannot be had; one line, meant for the user."""


class Node(NamedTuple):
    """One machine of a run: its name, the address that other nodes reach it at, and its working folder for the run."""

    name: str
    address: str
    folder: str


class Command(NamedTuple):
    """A program to start on a node: `env` is added to the node's own, output is appended to `log` in its folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    log: str


class Process(Protocol):
    """A program that was started on a node."""

    @property
    def pid(self) -> int:
        """Its process ID on the node."""

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal, or None while it runs."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait for it to end; returns what `poll` would."""

    def terminate(self) -> None:
        """Ask it to stop; no error if it has ended."""

    def kill(self) -> None:
        """Kill it and everything it started; no error if it has ended."""


class Cluster(Protocol):
    """A set of nodes to run on."""

    name: str

    def nodes(self, run: str, count: int) -> list[Node]:
        """Return `count` nodes for a run, the same ones for the same run where possible; leaves no trace on them.

        Raises:
            ClusterError: so many cannot be had.
        """

    def make_ready(self, node: Node) -> None:
        """Make a node's working folder, if it is not there yet; programs can be started then.

        Raises:
            ClusterError: it cannot be made.
        """

    def free_port(self, node: Node) -> int:
        """Return a TCP port that nothing listens on."""

    def port_in_use(self, node: Node, port: int) -> bool:
        """Tell whether something listens on a TCP port (1 to 65535) of a node.

        Raises:
            ClusterError: this user may not listen there.
        """

    def start(self, node: Node, command: Command) -> Process:
        """Start a program on a node.

        Raises:
            ClusterError: it cannot be started.
        """

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """Return a file of the node's folder from `offset` on; empty if it is not there (yet)."""
