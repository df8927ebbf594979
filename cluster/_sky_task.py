"""What `clusters.toml` says of a SkyPilot cluster, and what SkyPilot is told: pure."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster import ClusterError, JobState, Offer, _sky_pods, _ssh_settings

VERSION = "0.14"
_ENVIRONMENT = "~/.fglaunch/sky"
_NAME_LENGTH = 30  # clouds have limits near 60 for names that SkyPilot makes longer
_PLACE = "~/.fglaunch-sky"
_WAITS = ("PENDING", "STARTING", "RECOVERING")  # Source: sky.jobs.state.ManagedJobStatus
_OURS = ("hosts", "user", "port", "ssh_config", "slots", "rendezvous", "addresses")  # SkyPilot says these


@dataclass(frozen=True, kw_only=True)
class SkySettings:
    """A cluster's entry; docs/sky.md says what each is for. `ssh` are settings of that backend, for the nodes."""

    skypilot: str = f"{_ENVIRONMENT}/bin/python"
    resources: Mapping[str, Any]
    file_mounts: Mapping[str, Any] = field(default_factory=dict)
    setup: str = ""
    idle_minutes: int = 10
    pod_grace_s: int = 120
    managed: bool = False
    ssh: Mapping[str, Any] = field(default_factory=dict)


def parse_settings(raw: Mapping[str, Any]) -> SkySettings:
    """Check a cluster's entry; what is in `resources` and `file_mounts`, SkyPilot checks when it is asked.

    Raises:
        ClusterError: names what is wrong.
    """
    own = {f.name for f in fields(SkySettings)} - {"ssh"}
    shared = {f.name for f in fields(_ssh_settings.Settings)} - set(_OURS)
    for name in raw:
        if name not in own | shared:
            known = ", ".join(sorted(own | shared))
            raise ClusterError(f"clusters.toml: sky has no setting {name!r}; there are: {known}")
    values = {name: value for name, value in raw.items() if name in own}
    _check(values)
    rest = {name: value for name, value in raw.items() if name not in own}
    _ssh_settings.parse_settings({**rest, "hosts": ["node"]})  # complains now, not after minutes
    return SkySettings(**values, ssh=rest)


def _check(values: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type, str]] = {
        "skypilot": (str, "the path of a Python that has SkyPilot"),
        "resources": (dict, 'a table as SkyPilot knows it, for example { infra = "aws", accelerators = "A100:8" }'),
        "file_mounts": (dict, "a table as SkyPilot knows it"),
        "setup": (str, "shell commands"),
        "idle_minutes": (int, "a whole number of minutes, 1 or more"),
        "pod_grace_s": (int, "a whole number of seconds, 1 or more"),
        "managed": (bool, "true or false"),
    }
    if "resources" not in values:
        raise ClusterError(f"clusters.toml: a sky cluster needs resources: {kinds['resources'][1]}")
    for name, value in values.items():
        kind, spelled = kinds[name]
        amount = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (amount if kind is int else isinstance(value, kind)):
            raise ClusterError(f"clusters.toml: {name} is {value!r}, and should be {spelled}")


# -- names --------------------------------------------------------------------------------------------------------


def cluster_name(run: str) -> str:
    """Return what a run's cluster is called: SkyPilot allows lower-case letters, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")[:_NAME_LENGTH].rstrip("-")
    return f"fgl-{plain}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"


def node_names(cluster: str, count: int) -> list[str]:
    """Return what SkyPilot calls the nodes of a cluster, head first."""
    return [cluster, *(f"{cluster}-worker{i}" for i in range(1, count))]


def cluster_of(node: str) -> str:
    """Return the cluster of a node."""
    return re.sub(r"-worker\d+$", "", node)


def bridge(rank: int) -> str:
    """Return the Python on a node that runs inside the cluster's job."""
    return f"{_PLACE}/node{rank}"


# -- tasks --------------------------------------------------------------------------------------------------------


def task(settings: SkySettings, cluster: str, count: int, holder: str, key: str) -> dict[str, Any]:
    """Return SkyPilot's task of a run's cluster: its machines, its storage, and the job that programs live in.

    Args:
        settings: the cluster's entry.
        cluster: its name.
        count: of nodes.
        holder: the source of `cluster._sky_holder`.
        key: tells this job from all others on its machines.
    """
    return {
        "name": cluster,
        "num_nodes": count,
        "resources": dict(settings.resources),
        **({"file_mounts": dict(settings.file_mounts)} if settings.file_mounts else {}),
        **({"setup": settings.setup} if settings.setup else {}),
        **_sky_pods.overrides(settings.resources, settings.pod_grace_s),
        "run": _job(f"{cluster}-{key}", settings.idle_minutes, holder),
    }


def of_kind(resources: Mapping[str, Any], *, spot: bool) -> dict[str, Any]:
    """Return SkyPilot's resources with every choice spot, or none."""
    found = {**resources, "use_spot": spot}
    for choices in ("any_of", "ordered"):
        if isinstance(found.get(choices), list):
            found[choices] = [{**choice, "use_spot": spot} for choice in found[choices]]
    return found


def _job(name: str, idle_minutes: int, holder: str) -> str:
    call = f"python3 {_PLACE}/holder.py"
    return "\n".join(
        [
            f"mkdir -p {_PLACE}",
            # Slurm's nodes share their home: nobody may read what is half written.
            f"cat > {_PLACE}/holder.$SKYPILOT_NODE_RANK <<'END_OF_HOLDER'",
            holder.rstrip("\n"),
            "END_OF_HOLDER",
            f"mv {_PLACE}/holder.$SKYPILOT_NODE_RANK {_PLACE}/holder.py",
            f"cat > {_PLACE}/node$SKYPILOT_NODE_RANK <<END_OF_BRIDGE",
            "#!/bin/sh",
            f'exec {call} python {name} $SKYPILOT_NODE_RANK "\\$@"',
            "END_OF_BRIDGE",
            f"chmod 755 {_PLACE}/node$SKYPILOT_NODE_RANK",
            f"exec {call} serve {name} {idle_minutes * 60}",
            "",
        ]
    )


def managed_task(
    settings: SkySettings, name: str, argv: Sequence[str], env: Mapping[str, str], project: str
) -> dict[str, Any]:
    """Return SkyPilot's task of a managed job: a supervisor on one machine, beside what it supervises.

    Args:
        settings: the cluster's entry.
        name: the job's.
        argv: what starts the supervisor.
        env: of the supervisor.
        project: the folder that is copied to the machine, and that the supervisor starts in.
    """
    return {
        "name": name,
        "num_nodes": 1,
        "workdir": project,
        "resources": dict(settings.resources),
        **({"file_mounts": dict(settings.file_mounts)} if settings.file_mounts else {}),
        **({"setup": settings.setup} if settings.setup else {}),
        **_sky_pods.overrides(settings.resources, settings.pod_grace_s),
        "envs": {**_sky_pods.environment(settings.resources), **env},
        "run": f"exec {shlex.join(argv)}\n",
    }


def autostop(settings: SkySettings) -> int | None:
    """Return after how many idle minutes SkyPilot is to tear a cluster down; on Slurm it cannot, our job does."""
    named = [str(choice["infra"]) for choice in _choices(settings) if "infra" in choice]
    only_slurm = bool(named) and all(infra.split("/")[0] == "slurm" for infra in named)
    return None if only_slurm else settings.idle_minutes


def gpus(settings: SkySettings) -> int:
    """Return the GPUs that a node of these resources has at least, as far as that is said by number; 0: none."""
    return min((_count(c["accelerators"]) for c in _choices(settings) if c.get("accelerators")), default=0)


def _choices(settings: SkySettings) -> list[Mapping[str, Any]]:
    """Return the parts of `resources` that may say where and what."""
    parts = [settings.resources, *settings.resources.get("any_of", []), *settings.resources.get("ordered", [])]
    return [part for part in parts if isinstance(part, Mapping)]


def _count(accelerators: Any) -> int:
    if isinstance(accelerators, Mapping):
        accelerators = ":".join(map(str, next(iter(accelerators.items()), ())))
    if not isinstance(accelerators, str):
        return 0
    count = accelerators.partition(":")[2] or "1"
    return int(float(count)) if re.fullmatch(r"\d+(\.\d+)?", count) else 0


# -- prices -------------------------------------------------------------------------------------------------------


def parse_job(found: Mapping[str, Any] | None) -> JobState | None:
    """Return how a managed job fares, out of what the driver says; None if it is over."""
    if found is None:
        return None
    text = str(found["status"])
    starts = int(found["recoveries"])
    return JobState(waits=text in _WAITS, text=text, starts=starts, leaving=False, called_off=text == "CANCELLING")


def parse_offer(raw: Mapping[str, Any]) -> Offer:
    """Return an offer out of what the driver says."""
    where = "/".join(str(raw[key]) for key in ("cloud", "region", "zone") if raw.get(key))
    parts = [str(raw["machine"])] if raw.get("machine") else []
    parts += [f"{name}:{count:g}" for name, count in (raw.get("accelerators") or {}).items()]
    return Offer(where, " ".join(parts), int(raw["nodes"]), bool(raw["spot"]), float(raw["dollars_per_hour"]))


# -- SkyPilot's environment ---------------------------------------------------------------------------------------


def interpreter(settings: SkySettings) -> Path:
    """Return the Python that has SkyPilot.

    Raises:
        ClusterError: it is not there.
    """
    path = Path(os.path.expanduser(settings.skypilot))  # noqa: PTH111  (as a shell would)
    if not os.access(path, os.X_OK):
        raise ClusterError(f"there is no {path}: {how_to_install(path)}")
    return path


def how_to_install(python: Path) -> str:
    """Return the commands that make SkyPilot's environment."""
    place = python.parent.parent
    return (
        f"SkyPilot lives in an environment of its own: `uv venv --seed --python 3.11 {place} &&"
        f" uv pip install --python {python} 'skypilot[aws]=={VERSION}.*'` (or [gcp], [kubernetes], [slurm], ...)"
    )
