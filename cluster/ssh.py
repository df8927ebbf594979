"""Hosts that OpenSSH can log in to. Their programs outlive the connection, and nothing else stays on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from cluster import ClusterError, Command, Fewer, Hardware, Node, Owner, Report, Unreachable, _ssh_code, equal_share
from cluster._abreast import ByThreads
from cluster._claims import settle
from cluster._host import READ_LIMIT
from cluster._machine import interface_of
from cluster._marks import end, stays
from cluster._ssh_client import config_argv, parse_config
from cluster._ssh_environment import wanted
from cluster._ssh_link import Broken, Link, link_to
from cluster._ssh_settings import Settings, parse_settings

_POLL_S = 0.05
_SIGNAL_S = 10.0
_START_S = 30.0
_SEND_S = 900.0
_INSTALL_S = 3600.0
_PACKAGE_ROOT = Path(__file__).parents[1]
_SPELLED = {"project": "code", "env": "environment"}


class SshProcess:
    """A program on a host, known by the record that its keeper wrote."""

    def __init__(self, link: Link, folder: str, name: str, record: Mapping[str, Any]) -> None:
        self._link, self._pid = link, int(record["pid"])
        self._which: dict[str, Any] = {"folder": folder, "name": name, "record": dict(record)}
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._pid

    def poll(self) -> int | None:
        """See `Process`."""
        if self._code is None and (answer := self._link.glance("status", **self._which)):
            self._code = answer.value
        return self._code

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        return self._code

    def terminate(self) -> None:
        """See `Process`."""
        if self._code is None:
            with suppress(Unreachable):
                self._link.ask("terminate", timeout_s=_SIGNAL_S, patience_s=_SIGNAL_S, **self._which)

    def kill(self) -> None:
        """See `Process`. What came of a program that has ended is killed too."""
        said: dict[str, Any] = {"code": -signal.SIGKILL}

        def strike() -> Sequence[int]:
            said.update(self._link.ask("kill", timeout_s=_SIGNAL_S, patience_s=_SIGNAL_S, **self._which).value)
            return said["left"] or [self._pid] * (said["code"] is None)  # its keeper has not written yet

        with suppress(Unreachable):
            end(strike)
            if said["left"]:
                raise ClusterError(f"{self._link.target.host}: {stays(self._which['name'], said['spelled'])}")
            self._code = -signal.SIGKILL if said["code"] is None else said["code"]


class SshCluster(ByThreads):
    """Hosts in the order of the settings, each `slots` nodes."""

    name = "ssh"
    lasting = True

    def __init__(self, settings: Settings, project: Path) -> None:
        """Make one that runs `project`; it connects when it is first used."""
        super().__init__()
        self._settings, self._project = settings, project
        self.shares_files = settings.shared
        self._found: dict[str, dict[str, Any]] = {}
        self._trees: dict[str, _ssh_code.Tree] = {}
        self._lock = threading.Lock()
        slots, known = range(settings.slots), (*settings.hosts, *filter(None, [settings.rendezvous]))
        self._hosts = {node_name(host, slot, settings.slots): host for host in reversed(known) for slot in slots}

    @property
    def extras(self) -> tuple[str, ...] | None:
        """See `Furnished`."""
        return self._settings.furnished

    # -- nodes ----------------------------------------------------------------------------------------------------

    def nodes(self, run: str, count: int) -> list[Node]:
        """See `Cluster`. Hosts that do not answer are passed over where there are others."""
        slots = self._settings.slots
        found: list[Node] = []
        silent: list[str] = []
        remaining = list(self._settings.hosts)
        while remaining and len(found) < count:
            needed = -(-(count - len(found)) // slots)
            asked, remaining = remaining[:needed], remaining[needed:]
            for host, problem in zip(asked, self.abreast(self._reach, asked), strict=True):
                if problem:
                    silent.append(problem)
                else:
                    found += [self._node(run, host, slot) for slot in range(slots)]
        if len(found) < count:
            have = f"{count} nodes are asked for, and there are {len(found)}"
            raise Fewer("; ".join([have, *silent]) if silent else f"{have}: see hosts in clusters.toml", found)
        return found[:count]

    def _reach(self, host: str) -> str:
        """Get to know a host; returns why not, if so."""
        try:
            self._hello(host)
        except ClusterError as error:
            return str(error)
        return ""

    def _hello(self, host: str) -> dict[str, Any]:
        if host not in self._found:
            self._found[host] = self._link(host).ask("hello").value
        return self._found[host]

    def _link(self, host: str) -> Link:
        return link_to(self._settings.target(host))

    def _node(self, run: str, host: str, slot: int) -> Node:
        home = self._hello(host)["home"]
        name = node_name(host, slot, self._settings.slots)
        folder = f"{_expand(self._settings.work, home)}/{run}/{name}"
        python = _expand(self._settings.python, home) or (sys.executable if self.shares_files else "")
        project = _expand(self._settings.project, home) or (str(self._project) if self.shares_files else "")
        return Node(
            name, self._address(host), folder, python or f"{folder}/env/bin/python", project or f"{folder}/project"
        )

    def _address(self, host: str) -> str:
        """Return the address that the others reach a host at: the one that we came in by, unless the user knows better.

        A host that does not tell is asked for under the name that ssh uses.
        """
        known = self._settings.addresses.get(host) or str(self._hello(host)["reached"])
        if known:
            return known
        argv = config_argv(self._settings.target(host))
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return parse_config(done.stdout).get("hostname", host.rpartition("@")[2])

    def _host(self, node: Node) -> str:
        """Return a node's host. A node that another process knew is known by its folder, which is called like it."""
        name = PurePosixPath(node.folder).name
        if name not in self._hosts:
            known = (*self._settings.hosts, *filter(None, [self._settings.rendezvous]))
            raise ClusterError(f"{name} is no node of this cluster; its hosts are {', '.join(known)}")
        return self._hosts[name]

    def _to(self, node: Node) -> Link:
        return self._link(self._host(node))

    def rendezvous_node(self, run: str) -> Node | None:
        """See `Cluster`."""
        host = self._settings.rendezvous
        return self._node(run, host, 0) if host else None

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """See `Cluster`."""
        hosts = [self._host(n) for n in nodes]
        self.abreast(self._reach, list({h: None for h in hosts if h not in self._found}))
        return [self._share(node) for node in nodes]

    def _share(self, node: Node) -> Hardware:
        """Return a slot's part of its host: the same one, whoever else takes part."""
        host, slots = self._host(node), self._settings.slots
        found = self._hello(host)
        slot = next(i for i in range(slots) if node_name(host, i, slots) == PurePosixPath(node.folder).name)
        return equal_share(Hardware(found["cores"], tuple(found["gpus"])), slot, slots)

    def version(self, node: Node) -> str:
        """See `Versioned`."""
        names = ["modules", "project", "env"]
        return " ".join(self._to(node).ask("linked", folder=node.folder, names=names).value)

    def silence_s(self, node: Node) -> float:
        """See `Cluster`."""
        return self._to(node).silence_s()

    def inspect(self) -> list[Report]:
        """See `Inspectable`."""
        hosts = dict.fromkeys((*self._settings.hosts, *filter(None, [self._settings.rendezvous])))
        return self.abreast(self._inspect, list(hosts))

    def _inspect(self, host: str) -> Report:
        try:
            found, node = self._hello(host), self._node("run", host, 0)
            own = self._settings.python or self.shares_files  # else an environment is made when a run needs one
            folder = _expand(self._settings.work, found["home"])
            more = self._link(host).ask("inspect", python=node.python if own else "", folder=folder).value
        except ClusterError as error:
            return Report(host, "", str(error).removeprefix(f"{host}: "))
        python = more["python"] or f"{found['python']} (an environment is made)"
        gpus = tuple(found["gpus"])
        return Report(host, node.address, "", python, found["cores"], gpus, more["disk"], more["shm"])

    # -- making ready ---------------------------------------------------------------------------------------------

    def claim(self, node: Node, owner: Owner) -> None:
        """See `Cluster`."""
        settle(node.name, self._to(node).ask("claim", folder=node.folder, owner=owner._asdict()).value)

    def make_ready(self, node: Node) -> None:
        """See `Cluster`: the code is sent and an environment made, what of both is not there yet.

        A run that is resumed from a machine without its project keeps what the node has of it.
        """
        link, home = self._to(node), self._hello(self._host(node))["home"]
        cache = _expand(self._settings.cache, home)
        link.ask("make_folder", folder=node.folder)
        own = (("project", node.project), ("env", node.python))
        needed = [name for name, path in own if path.startswith(f"{node.folder}/")]
        done = []
        if needed and not self._project.is_dir():
            done.append(self._kept(link, node, needed))
            needed = []
        done += self._send_code(link, cache, node, project="project" in needed)
        if "env" in needed:
            done += self._make_environment(link, cache, node)
        if removed := link.ask(
            "prune", timeout_s=_SEND_S, cache=cache, folder=node.folder, keep=self._settings.keep
        ).value:
            done.append(f"{len(removed)} old ones removed")
        if done:
            print(f"{node.name}: {'; '.join(done)}", file=sys.stderr, flush=True)

    def _kept(self, link: Link, node: Node, names: Sequence[str]) -> str:
        """Have a node keep what it has of the project, which is not on this machine; returns what there is to tell.

        Raises:
            ClusterError: it has not all of it.
        """
        for name in names:
            if not link.ask("keep", folder=node.folder, name=name).value:
                raise ClusterError(
                    f"{self._project}, where the run was begun, is not on this machine, and {node.name} has no"
                    f" {_SPELLED[name]} of it from before: put a copy of its code there"
                )
        what = " and ".join(_SPELLED[name] for name in names)
        return f"{self._project} is not on this machine: it keeps its {what}"

    def _send_code(self, link: Link, cache: str, node: Node, *, project: bool) -> list[str]:
        """Send our own code, unless files are shared, and the project's; returns what there is to tell."""
        files = sent = size = 0
        for name in [*([] if self.shares_files else ["modules"]), *(["project"] if project else [])]:
            tree = self._tree(name)
            wanted_ = link.ask("missing", cache=cache, digest=tree.digest, files=tree.files).value
            body = _ssh_code.pack(tree, wanted_) if wanted_ else b""
            link.ask(
                "assemble",
                body or b"\n",
                timeout_s=_SEND_S,
                cache=cache,
                digest=tree.digest,
                files=tree.files,
                order=wanted_,
            )
            link.ask("link", folder=node.folder, name=name, target=f"{cache}/code/{tree.digest}")
            files, sent, size = files + len(tree.files), sent + len(wanted_), size + len(body)
        return [f"code of {files} files, {sent} sent ({size / 1024:.0f} KiB)"] if sent else []

    def _tree(self, name: str) -> _ssh_code.Tree:
        """Return what is sent under a name: "project", or "modules", our own package as it runs here."""
        with self._lock:
            if name not in self._trees:
                if name == "project":
                    root, files = self._project, _ssh_code.project_files(self._project)
                else:
                    root, files = _PACKAGE_ROOT, _ssh_code.package_files(_PACKAGE_ROOT, "fgtrain")
                self._trees[name] = _ssh_code.take_tree(root, files)
            return self._trees[name]

    def _make_environment(self, link: Link, cache: str, node: Node) -> list[str]:
        """Have the environment made; returns what there is to tell."""
        s = self._settings
        extras = s.furnished or ()  # else the user's requirements count
        need = wanted(self._project, _PACKAGE_ROOT, s.requirements, s.constraints, s.install_options, extras)
        took = link.ask(
            "make_environment",
            timeout_s=_INSTALL_S,
            cache=cache,
            key=need.key,
            requirements=need.requirements,
            constraints=need.constraints,
            options=need.options,
            env=s.passed(os.environ),
        ).value
        link.ask("link", folder=node.folder, name="env", target=f"{cache}/envs/{need.key}")
        return [f"environment {need.key} made in {took:.0f} s"] if took else []

    # -- programs -------------------------------------------------------------------------------------------------

    def start(self, node: Node, command: Command) -> SshProcess:
        """See `Cluster`."""
        link, nonce = self._to(node), uuid.uuid4().hex
        request = {
            "folder": node.folder,
            "name": command.name,
            "nonce": nonce,
            "argv": list(command.argv),
            "env": self._environ(node) | dict(command.env),
            "project": node.project,
            "modules": "" if self.shares_files else f"{node.folder}/modules",
        }
        with suppress(Broken):  # once more: the nonce sees to it that there is one program only
            return self._started(link, request)
        return self._started(link, request)

    def _started(self, link: Link, request: dict[str, Any]) -> SshProcess:
        record = link.ask("start", timeout_s=_START_S, **request).value
        return SshProcess(link, request["folder"], request["name"], record)

    def _environ(self, node: Node) -> dict[str, str]:
        """Return what a program's environment has beside the host's own: it travels as data, never as an argument."""
        interface = interface_of(node.address, self._hello(self._host(node))["interfaces"])
        # Else gloo binds to what the host's name resolves to, which may be loopback, or another network.
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ()
        return {n: str(interface) for n in names} | self._settings.passed(os.environ)

    def find(self, node: Node, name: str) -> SshProcess | None:
        """See `Cluster`."""
        link = self._to(node)
        record = link.ask("find", folder=node.folder, name=name).value
        return SshProcess(link, node.folder, name, record) if record else None

    def size(self, node: Node, name: str) -> int:
        """See `Cluster`."""
        answer = self._to(node).glance("size", path=f"{node.folder}/{name}")
        if answer is None:
            raise Unreachable(f"{node.name} does not answer")
        return int(answer.value)

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """See `Cluster`."""
        return b"".join(self._pieces(self._to(node), f"{node.folder}/{name}", offset))

    def _pieces(self, link: Link, path: str, offset: int) -> Iterator[bytes]:
        while answer := link.glance("read", path=path, offset=offset):
            yield answer.body
            offset += len(answer.body)
            if len(answer.body) < READ_LIMIT:
                return

    def free_port(self, node: Node) -> int:
        """See `Cluster`."""
        return int(self._to(node).ask("free_port", address=node.address).value)

    def port_in_use(self, node: Node, port: int) -> bool:
        """See `Cluster`."""
        return bool(self._to(node).ask("port_in_use", address=node.address, port=port).value)


def node_name(host: str, slot: int, slots: int) -> str:
    """Return what a host's node is called."""
    plain = re.sub(r"[^\w.-]", "-", host.rpartition("@")[2])
    return plain if slots == 1 else f"{plain}-{slot}"


def _expand(path: str, home: str) -> str:
    """Return a path on a host whose home folder this is."""
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def open_cluster(settings: Mapping[str, Any], project: Path, work: Path) -> SshCluster:
    """See `cluster.open_cluster`; what can be set is in `cluster._ssh_settings`."""
    return SshCluster(parse_settings(settings), project)
