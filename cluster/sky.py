"""SkyPilot: a run's machines are rented where they are to be had, lost ones again; programs are reached over SSH.

SkyPilot itself lives in another environment, behind `cluster._sky_driver`. A run has a SkyPilot cluster of its own.
Its job (`cluster._sky_holder`) holds the run's programs, and ends once nothing runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cluster import (
    ClusterError,
    Command,
    Hardware,
    Held,
    Node,
    Occupied,
    Offer,
    Owner,
    Process,
    Report,
    Unreachable,
    _sky_pods,
    check_project,
)
from cluster import _host_claims as claims
from cluster import _sky_task as words
from cluster._abreast import ByThreads
from cluster._sky_queue import JOB, SkyQueue
from cluster._sky_rent import Landlord, Rent
from cluster._ssh_client import Target
from cluster._ssh_link import leave
from cluster._ssh_settings import Settings, parse_settings
from cluster.local import LocalCluster
from cluster.ssh import SshCluster

_SILENT_S = 5.0  # when a node is silent for so long, SkyPilot is asked whether its cluster lives
_START_S = 120.0  # from a job's submission to its answer
_TRY_AGAIN_S = 1.0


class NodePrices(NamedTuple):
    """What an hour of a node costs, in US dollars."""

    spot: float
    on_demand: float


@dataclass(frozen=True, kw_only=True)
class _Hosts(Settings):
    """Settings of the `ssh` backend for a cluster's nodes: on each, a Python that runs inside the cluster's job."""

    def target(self, host: str) -> Target:
        """See `Settings`."""
        return super().target(host)._replace(python=words.bridge(self.hosts.index(host)))


class SkyProcess:
    """A program on a node; it is dead once the cluster that it was started on is no more."""

    def __init__(self, cluster: SkyCluster, node: Node, serial: int, inner: Process) -> None:
        self._cluster, self._node, self._serial, self._inner = cluster, node, serial, inner

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._inner.pid

    def _gone(self) -> bool:
        return self._cluster.is_gone(self._node, self._serial)

    def poll(self) -> int | None:
        """See `Process`."""
        if self._gone():
            return -signal.SIGKILL
        return self._inner.poll()

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None and (left := deadline - time.monotonic()) > 0:
            self._inner.wait(min(left, 0.5))
        return code

    def terminate(self) -> None:
        """See `Process`."""
        if not self._gone():
            self._inner.terminate()

    def kill(self) -> None:
        """See `Process`."""
        if not self._gone():
            self._inner.kill()


class SkyCluster(ByThreads):
    """Rented machines: a SkyPilot cluster a run."""

    name = "sky"
    lasting = True

    def __init__(
        self, settings: words.SkySettings, project: Path, landlord: Landlord, start_s: float = _START_S
    ) -> None:
        """Make one that runs `project`; nothing is asked of SkyPilot before it has to be."""
        super().__init__()
        self._settings, self._project, self._landlord, self._start_s = settings, project, landlord, start_s
        self.shares_files = bool(settings.ssh.get("shared", False))
        self._lock = threading.RLock()
        self._counts: dict[str, int] = {}
        self._claimed: dict[str, str] = {}  # for which run
        self._opened: dict[str, tuple[int, _Hosts, SshCluster]] = {}  # by serial number

    @property
    def extras(self) -> tuple[str, ...] | None:
        """See `Furnished`."""
        return parse_settings({**self._settings.ssh, "hosts": ["node"]}).furnished

    # -- renting --------------------------------------------------------------------------------------------------

    def offers(self, count: int, *, spot: bool | None = None) -> list[Offer]:
        """See `Rented`."""
        config = self._landlord.task("offer", count)
        if spot is not None:
            config["resources"] = words.of_kind(config["resources"], spot=spot)
        return [words.parse_offer(raw) for raw in self._landlord.ask("offers", config=config)]

    def prices(self) -> NodePrices | None:
        """Return what an hour of a node costs where it costs least; None if that is not known.

        A kind that is not to be had costs what the other does.
        """
        spot, on_demand = self._price(spot=True), self._price(spot=False)
        if not spot and not on_demand:  # what SkyPilot knows no price of costs 0
            return None
        return NodePrices(spot or on_demand, on_demand or spot)

    def _price(self, *, spot: bool) -> float:
        try:
            return self.offers(1, spot=spot)[0].dollars_per_hour
        except ClusterError:
            return 0.0

    def inspect(self) -> list[Report]:
        """See `Inspectable`. Nothing is rented for it: what a node could be, and which SkyPilot says so."""
        version = self._landlord.ask("hello")["version"]
        return [Report(self.offers(1)[0].where, "", "", f"SkyPilot {version}")]

    def renew(self, node: Node) -> Node:
        """See `Rented`."""
        self.make_ready(node)
        return self._current(node)

    def prefer(self, run: str, *, spot: bool) -> None:
        """See `TwoKinds`."""
        self._landlord.prefer(words.cluster_name(run), spot=spot)

    def held(self, run: str) -> Held | None:
        """See `Rented`."""
        cluster = words.cluster_name(run)
        rent = self._landlord.rent(cluster)
        gone = rent is None or self._landlord.is_gone(cluster, rent.serial)
        return None if rent is None or gone else Held(rent.offer, rent.serial)

    def call_off(self, run: str) -> None:
        """See `Rented`."""
        self._landlord.call_off(words.cluster_name(run))

    def give_back(self, run: str) -> None:
        """See `Rented`."""
        cluster = words.cluster_name(run)
        self._leave(cluster)
        if self._claimed.get(cluster) in (None, self._landlord.owner(cluster).get("id")):  # else another run's by now
            self._landlord.end(cluster)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def nodes(self, run: str, count: int) -> list[Node]:
        """See `Cluster`. Until they are rented, nodes have names only."""
        cluster = words.cluster_name(run)
        rent = self._landlord.rent(cluster)
        if rent and len(rent.nodes) >= count:
            return list(rent.nodes[:count])
        if rent and self._landlord.in_use(cluster, rent.serial):  # a larger one would be launched in its place
            raise ClusterError(
                f"{cluster} has {len(rent.hosts)} machines, not {count}: it does not grow while it is used"
            )
        self._counts[cluster] = count
        return [self._unrented(run, name) for name in words.node_names(cluster, count)]

    def _unrented(self, run: str, name: str) -> Node:
        ssh = self._settings.ssh
        folder = f"{ssh.get('work', Settings.work)}/{run}/{name}"
        python = str(ssh.get("python", "")) or (sys.executable if self.shares_files else f"{folder}/env/bin/python")
        project = str(ssh.get("project", "")) or (str(self._project) if self.shares_files else f"{folder}/project")
        return Node(name, name, folder, python, project)

    def claim(self, node: Node, owner: Owner) -> None:
        """See `Cluster`. Machines that do not answer, and are not lost, stay with the run they were rented for."""
        cluster, way = _cluster(node), self._way(node)
        with self._lock:
            found = self._landlord.owner(cluster)
            other = found if found.get("id") != owner.id else {}
            if way is None and (other or not found):
                self._landlord.check_free(cluster, other)
            elif way and not self._landlord.is_gone(cluster, way[0]):
                self._claim_machine(way, owner, other)
            self._landlord.own(cluster, owner)
            self._claimed[cluster] = owner.id

    def _claim_machine(self, way: tuple[int, SshCluster, Node], owner: Owner, other: Mapping[str, Any]) -> None:
        try:
            way[1].claim(way[2], owner)
        except Occupied:
            raise
        except ClusterError as error:
            if other and self._landlord.keeps(_cluster(way[2])):
                raise Occupied(f"{claims.refusal(way[2].name, other)} ({error})") from error

    def make_ready(self, node: Node) -> None:
        """See `Cluster`. The first node to be made ready has the whole cluster rented, which takes minutes."""
        cluster = _cluster(node)
        with self._lock:
            if self._landlord.rent(cluster) is None:
                self._check_project()
            rent = self._landlord.have(cluster, self._counts.get(cluster, 1), self._answers)
            ssh = self._ssh(cluster, rent)
            if not rent.nodes:
                try:
                    nodes = _reach(ssh, PurePosixPath(node.folder).parent.name, len(rent.hosts), self._start_s)
                except ClusterError as error:
                    raise ClusterError(f"{error}; its job said: {self._landlord.said(cluster, rent.job)}") from error
                self._landlord.note(cluster, rent._replace(nodes=tuple(nodes)))
        ssh.make_ready(self._current(node))

    def _check_project(self) -> None:
        """Rent nothing that would have neither code nor environment.

        Raises:
            ClusterError
        """
        if not self.shares_files and not {"project", "python"} <= self._settings.ssh.keys():
            check_project(self._project)

    def _answers(self, cluster: str, rent: Rent) -> bool:
        """Tell whether programs can be started on all machines: then SkyPilot, which takes its time, is not asked."""
        try:
            return bool(rent.nodes) and bool(self._ssh(cluster, rent).nodes("", len(rent.hosts)))
        except ClusterError:
            return False

    def _ssh(self, cluster: str, rent: Rent) -> SshCluster:
        """Return the way to a cluster's machines."""
        with self._lock:
            opened = self._opened.get(cluster)
            if opened is None or opened[0] != rent.serial:
                self._leave(cluster)
                hosts = _hosts(self._settings, rent, self._landlord.ssh_config(cluster, rent.serial))
                opened = self._opened[cluster] = (rent.serial, hosts, SshCluster(hosts, self._project))
            return opened[2]

    def _leave(self, cluster: str) -> None:
        """End the connections to machines that are no more."""
        if opened := self._opened.pop(cluster, None):
            for host in opened[1].hosts:
                leave(opened[1].target(host))

    def _current(self, node: Node) -> Node:
        """Return a node as it is now; one that another process knew is known by its folder, which is called like it."""
        rent = self._landlord.rent(_cluster(node))
        name = _name(node)
        return next((n for n in (rent.nodes if rent else ()) if n.name == name), node)

    def _way(self, node: Node) -> tuple[int, SshCluster, Node] | None:
        """Return a node's machine as it is now, and how to reach it; None if it is not rented."""
        cluster, current = _cluster(node), self._current(node)
        rent = self._landlord.rent(cluster)
        if rent is None or current not in rent.nodes:
            return None
        return rent.serial, self._ssh(cluster, rent), current

    def _must(self, node: Node) -> tuple[int, SshCluster, Node]:
        way = self._way(node)
        if way is None or self._landlord.is_gone(_cluster(node), way[0]):
            raise Unreachable(f"{_name(node)} is not rented (any more)")
        return way

    def is_gone(self, node: Node, serial: int) -> bool:
        """Whether what was started on a node is known to be gone with it; SkyPilot is asked if it is silent."""
        cluster = _cluster(node)
        way = self._way(node)
        if way is None or way[0] != serial:
            return True
        if not self._landlord.is_gone(cluster, serial) and way[1].silence_s(way[2]) >= _SILENT_S:
            self._landlord.suspect(cluster, serial)
        return self._landlord.is_gone(cluster, serial)

    def rendezvous_node(self, run: str) -> None:
        """See `Cluster`."""

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """See `Cluster`. Until they are rented, what is asked for."""
        ways = [self._way(node) for node in nodes]
        if not all(ways):
            return [Hardware(1, tuple(map(str, range(words.gpus(self._settings))))) for _ in nodes]
        return [way[1].hardware([way[2]])[0] for way in ways if way]

    def silence_s(self, node: Node) -> float:
        """See `Cluster`."""
        way = self._way(node)
        return way[1].silence_s(way[2]) if way else 0.0

    def free_port(self, node: Node) -> int:
        """See `Cluster`."""
        _, ssh, current = self._must(node)
        return ssh.free_port(current)

    def port_in_use(self, node: Node, port: int) -> bool:
        """See `Cluster`. A machine that is not rented yet has all ports free."""
        way = self._way(node)
        return way is not None and way[1].port_in_use(way[2], port)

    # -- programs -------------------------------------------------------------------------------------------------

    def start(self, node: Node, command: Command) -> SkyProcess:
        """See `Cluster`."""
        serial, ssh, current = self._must(node)
        return SkyProcess(self, node, serial, ssh.start(current, command))

    def find(self, node: Node, name: str) -> SkyProcess | None:
        """See `Cluster`."""
        way = self._way(node)
        if way is None or self._landlord.is_gone(_cluster(node), way[0]):
            return None
        found = way[1].find(way[2], name)
        return SkyProcess(self, node, way[0], found) if found else None

    def size(self, node: Node, name: str) -> int:
        """See `Cluster`."""
        way = self._way(node)
        return way[1].size(way[2], name) if way else 0

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """See `Cluster`."""
        way = self._way(node)
        return way[1].read(way[2], name, offset) if way else b""


def _name(node: Node) -> str:
    return PurePosixPath(node.folder).name


def _cluster(node: Node) -> str:
    return words.cluster_of(_name(node))


def _hosts(settings: words.SkySettings, rent: Rent, config: Path) -> _Hosts:
    env = {**_sky_pods.environment(settings.resources), **settings.ssh.get("env", {})}
    raw = {**settings.ssh, "env": env, "hosts": list(rent.hosts), "ssh_config": str(config)}
    plain = parse_settings({**raw, "addresses": dict(zip(rent.hosts, rent.addresses, strict=True))})
    return _Hosts(**{f.name: getattr(plain, f.name) for f in fields(plain)})


def _reach(ssh: SshCluster, run: str, count: int, start_s: float) -> list[Node]:
    """Return the nodes of machines that have just been launched, and whose job is about to start.

    Raises:
        ClusterError: it did not start.
    """
    deadline = time.monotonic() + start_s
    while True:
        try:
            return ssh.nodes(run, count)
        except ClusterError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_TRY_AGAIN_S)


def open_cluster(settings: Mapping[str, Any], project: Path, work: Path) -> SkyCluster | LocalCluster:
    """See `cluster.open_cluster`; what can be set is in `cluster._sky_task`. In a managed job, its machine is meant."""
    found = words.parse_settings(settings)
    if found.managed and os.environ.get(JOB):
        return LocalCluster(work, Path.cwd())
    return SkyCluster(found, project, Landlord(found, work / "sky"))


def open_queue(settings: Mapping[str, Any], project: Path, work: Path) -> SkyQueue | None:
    """See `cluster.open_queue`: managed jobs, where the settings ask for them."""
    found = words.parse_settings(settings)
    return SkyQueue(found, project, work, Landlord(found, work / "sky")) if found.managed else None
