"""This machine, as any number of nodes."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import (
    ClusterError,
    Command,
    Hardware,
    Node,
    Owner,
    Report,
    _machine,
    _marks,
    check_project,
    equal_share,
)
from cluster._claims import take
from cluster._host_claims import works_locally
from cluster._marks import MARK, STARTER


class LocalProcess:
    """A program in a session of its own, and all that came of it."""

    def __init__(self, node: Node, command: Command) -> None:
        self._where, self._name = node.name, command.name
        self._mark = f"{node.folder}#{command.name}#{os.urandom(4).hex()}"
        env = os.environ | dict(command.env) | {MARK: self._mark, STARTER: str(os.getpid())}
        log = Path(node.folder) / f"{command.name}.log"
        try:
            with log.open("ab") as out:
                self._popen = subprocess.Popen(
                    command.argv,
                    env=env,
                    cwd=node.project,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise ClusterError(f"cannot start {command.argv[0]} on {node.name}: {error}") from error

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._popen.pid

    def poll(self) -> int | None:
        """See `Process`."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        return self._popen.poll()

    def terminate(self) -> None:
        """See `Process`."""
        if self._popen.poll() is None:
            self._popen.terminate()

    def kill(self) -> None:
        """See `Process`."""
        if left := _marks.end(self._strike):
            raise ClusterError(f"{self._where}: {_marks.stays(self._name, _marks.spell(left))}")

    def _strike(self) -> Sequence[int]:
        return _marks.strike(self._mark, self._popen.pid if self._popen.poll() is None else None)


class LocalCluster:
    """Nodes that are folders of this machine; each process group stands for a machine's processes."""

    name = "local"
    lasting = False
    shares_files = True

    def __init__(self, root: Path, project: Path) -> None:
        """Make one whose working folders are below `root` and whose programs start in `project`."""
        self._root, self._project = root, project

    def nodes(self, run: str, count: int) -> list[Node]:
        """See `Cluster`."""
        return [
            Node(f"node{i}", "127.0.0.1", str(self._root / run / f"node{i}"), sys.executable, str(self._project))
            for i in range(count)
        ]

    def claim(self, node: Node, owner: Owner) -> None:
        """See `Cluster`."""
        try:
            take(node, owner, lambda found: works_locally(node.folder, found))
        except OSError as error:
            raise _no_folder(node, error) from error

    def make_ready(self, node: Node) -> None:
        """See `Cluster`."""
        check_project(self._project)
        try:
            Path(node.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_folder(node, error) from error

    def rendezvous_node(self, run: str) -> None:
        """See `Cluster`."""

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """See `Cluster`."""
        machine = Hardware(_machine.cpu_count(), tuple(_machine.cuda_devices()))
        return [equal_share(machine, i, len(nodes)) for i in range(len(nodes))]

    def silence_s(self, node: Node) -> float:
        """See `Cluster`."""
        return 0.0

    def inspect(self) -> list[Report]:
        """See `Inspectable`."""
        return [
            Report(
                "this machine",
                "127.0.0.1",
                "",
                platform.python_version(),
                _machine.cpu_count(),
                tuple(_machine.cuda_devices()),
                _machine.free_bytes(str(self._root)),
                _machine.free_bytes("/dev/shm"),
            )
        ]

    def free_port(self, node: Node) -> int:
        """See `Cluster`."""
        return _machine.free_port(node.address)

    def port_in_use(self, node: Node, port: int) -> bool:
        """See `Cluster`."""
        try:
            return _machine.port_in_use(node.address, port)
        except PermissionError as error:
            raise ClusterError(f"port {port}: this user may not listen there; use one above 1023") from error

    def start(self, node: Node, command: Command) -> LocalProcess:
        """See `Cluster`."""
        return LocalProcess(node, command)

    def find(self, node: Node, name: str) -> None:
        """See `Cluster`."""

    def size(self, node: Node, name: str) -> int:
        """See `Cluster`."""
        return _machine.file_size(str(Path(node.folder) / name))

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """See `Cluster`."""
        return _machine.read_file(str(Path(node.folder) / name), offset)


def _no_folder(node: Node, error: OSError) -> ClusterError:
    return ClusterError(
        f"cannot make the working folder {node.folder}: {error.strerror}; set FGLAUNCH_WORK to another place"
    )


def open_cluster(settings: Mapping[str, Any], project: Path, work: Path) -> LocalCluster:
    """See `cluster.open_cluster`; there is nothing to set."""
    if settings:
        raise ClusterError(f"local has no setting {next(iter(settings))!r}")
    return LocalCluster(work, project)
