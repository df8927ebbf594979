"""The check of nodes before they are used: started on all of them at once, read back, judged."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cluster import Cluster, ClusterError, Command, Node, Process
from fgtrain.errors import UserError
from fgtrain.plan import World
from launcher import engine
from launcher.abreast import each
from launcher.clock import Clock
from launcher.supervision import Check

_FILE = "check.json"
_GIB = 1 << 30
_POLL_S = 0.02


class Seen(NamedTuple):
    """What a node's check found (None: it gave no answer), and when it was begun and read, in Unix seconds."""

    report: dict[str, Any] | None
    begun: float
    read: float
    trouble: str = ""


def check_hardware(nodes: Sequence[Node], cluster: Cluster, world: World) -> list[str]:
    """Check that every node has the GPUs that are asked for, or none has any; returns what the user should know.

    Raises:
        UserError
    """
    counts = [len(share.gpus) for share in cluster.hardware(nodes)]
    for node, count in zip(nodes, counts, strict=True):
        if count < world.gpus and any(counts):
            raise UserError(f"--gpus {world.gpus}: {node.name} has {count} GPUs")
    return [] if any(counts) else [f"no GPU on the nodes: --gpus {world.gpus} means CPU processes"]


def is_full(check: Check, cluster: Cluster) -> bool:
    """Tell whether nodes compute and measure, too."""
    return check.level == "full" or (check.level == "auto" and cluster.name != "local")


def examine(
    cluster: Cluster,
    nodes: Sequence[Node],
    endpoint: str,
    check: Check,
    clock: Clock,
    interrupted: Callable[[], bool],
    env: Mapping[str, str],
) -> dict[str, Seen]:
    """Run the check on nodes, all at once; returns what each said.

    Args:
        cluster: theirs.
        nodes: which.
        endpoint: HOST:PORT of the rendezvous store, through which they find each other.
        check: what to look at.
        clock: to wait by.
        interrupted: whether to leave off.
        env: what is added to their environment.
    """
    key, full = secrets.token_hex(4), is_full(check, cluster)
    begun = clock.time()

    def begin(rank: int) -> Process:
        node = nodes[rank]
        argv = engine.check_argv(
            *(node.python, node.folder), full=full, key=key, endpoint=endpoint, address=node.address
        ) + (("--rank", str(rank), "--size", str(len(nodes))) if full else ())
        return cluster.start(node, Command("check", argv, env))

    def look(one: tuple[Node, Process]) -> Seen | None:
        code = one[1].poll()
        return None if code is None else _read(cluster, one[0], key, begun, clock.time(), code)

    def told(found: Seen | ClusterError) -> Seen:
        return Seen(None, begun, clock.time(), str(found)) if isinstance(found, ClusterError) else found

    started = list(zip(nodes, each(cluster, begin, range(len(nodes))), strict=True))
    seen = {node.name: told(refused) for node, refused in started if isinstance(refused, ClusterError)}
    running = {node.name: (node, process) for node, process in started if not isinstance(process, ClusterError)}
    deadline = clock.now() + check.timeout_s
    while running and clock.now() < deadline and not interrupted():
        for name, found in zip(list(running), each(cluster, look, list(running.values())), strict=True):
            if found:
                seen[name] = told(found)
                del running[name]
        if running:
            clock.sleep(_POLL_S)
    each(cluster, lambda one: one[1].kill(), list(running.values()))
    for name in running:
        seen[name] = Seen(None, begun, clock.time(), f"its check gave no answer within {check.timeout_s:g} s")
    return seen


def _read(cluster: Cluster, node: Node, key: str, begun: float, now: float, code: int | None) -> Seen:
    try:
        report = msgspec.json.decode(cluster.read(node, _FILE, 0), type=dict[str, Any])
        if report.get("key") == key:
            return Seen(report, begun, now)
    except (msgspec.DecodeError, ClusterError):
        pass
    try:
        log = cluster.read(node, "check.log", 0)[-500:].decode(errors="replace").strip()
    except ClusterError as error:
        log = str(error)
    return Seen(None, begun, now, f"its check ended with exit code {code}: {(log.splitlines() or ['no output'])[-1]}")


def judge(seen: Mapping[str, Seen], check: Check, gpus: int, names: Sequence[str]) -> dict[str, list[str]]:
    """Return what is wrong with each node that cannot be used. Pure.

    A link is two nodes' affair: a node is blamed for slow ones only if all of its links are slow, and others' are not.

    Args:
        seen: by node.
        check: the limits.
        gpus: how many a node should have, if it has any.
        names: the nodes by their number in the check.
    """
    bad = {name: _problems(one, check, gpus) for name, one in seen.items()}
    slow = {name: _slow(one, check) for name, one in seen.items()}
    all_slow = [name for name, (links, few) in slow.items() if links and links == few]
    silent = {name for name in names if seen[name].report is None}
    if len(all_slow) < len([n for n in names if slow[n][0]]):
        for name in all_slow:
            if not silent:  # else who did not answer is the likelier cause
                bad[name].append(f"its links are slower than {check.link_mb_s:g} MB/s or broken")
    return {name: problems for name, problems in bad.items() if problems}


def _slow(seen: Seen, check: Check) -> tuple[int, int]:
    """Return how many links a node has measured and how many of them are slow or broken."""
    links = list(((seen.report or {}).get("links") or {}).values())
    return len(links), sum(isinstance(v, str) or v < check.link_mb_s for v in links)


def _problems(seen: Seen, check: Check, gpus: int) -> list[str]:
    report = seen.report
    if report is None:
        return [seen.trouble]
    found = []
    if not report["writable"]:
        found.append("its working folder cannot be written")
    if report["disk_free"] < check.disk_gib * _GIB:
        found.append(f"its disk has {report['disk_free'] / _GIB:.2f} GiB free, less than {check.disk_gib:g}")
    if report["shm_free"] == 0:
        found.append("its /dev/shm is full")
    late, early = report["time"] - seen.read, seen.begun - report["time"]
    if max(late, early) > check.skew_s:
        found.append(f"its clock is {max(late, early):.0f} s {'ahead' if late > early else 'behind'}")
    found += _device_problems(report, gpus)
    return found


def _device_problems(report: Mapping[str, Any], gpus: int) -> list[str]:
    devices = report.get("devices")
    if devices is None:
        files = report["device_files"]
        return [f"it has {files} GPUs of {gpus}"] if 0 < files < gpus else []
    found = [f"{d['name']}: {d['error']}" for d in devices if d["error"]]
    seen = sum(d["name"].startswith("cuda") for d in devices)
    if report["device_files"] and seen < min(gpus, report["device_files"]):
        found.append(f"torch sees {seen} of its {report['device_files']} GPUs")
    elif 0 < seen < gpus:
        found.append(f"it has {seen} GPUs of {gpus}")
    return found
