"""What `clusters.toml` can say of a cluster of SSH hosts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from cluster import ClusterError
from cluster._ssh_client import Target

_PASSED = ("AWS_*", "FGLAUNCH_*")
_NOT_PASSED = (  # what is about this machine; whoever needs one of them elsewhere names it in pass_env
    *(
        "FGLAUNCH_CLUSTERS",
        "FGLAUNCH_WORK",
        "FGLAUNCH_STORE",
        "FGLAUNCH_MEMORY",
        "FGLAUNCH_NODE_MARK",
        "FGLAUNCH_POD_ENDS",
        "FGLAUNCH_*_PID",
    ),
    *("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_*_FILE"),
)
_EXTRAS = ("deepspeed",)  # of our own: what nodes may need beside `train`, which holds what `s3` does
_KINDS: dict[str, tuple[type, str]] = {
    "str": (str, "a string"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "tuple[str, ...]": (list, "a list of strings"),
    "dict[str, str]": (dict, "a table of strings"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A cluster's entry; docs/clusters.md says what each is for."""

    hosts: tuple[str, ...]
    user: str = ""
    port: int = 0
    ssh_config: str = ""
    ssh_options: tuple[str, ...] = ()
    slots: int = 1
    rendezvous: str = ""
    shared: bool = False
    python: str = ""
    project: str = ""
    work: str = "~/.local/state/fglaunch/work"
    cache: str = "~/.cache/fglaunch"
    keep: int = 5
    requirements: str = ""
    constraints: str = ""
    extras: tuple[str, ...] = ()
    install_options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    addresses: dict[str, str] = field(default_factory=dict)

    def target(self, host: str) -> Target:
        """Return how to get to a host."""
        config = os.path.expanduser(self.ssh_config)  # noqa: PTH111  (empty stays empty)
        return Target(host, self.user, self.port, config, self.ssh_options, self.python or "python3")

    @property
    def furnished(self) -> tuple[str, ...] | None:
        """See `Furnished.extras`."""
        return None if self.python or self.requirements or self.shared else ("train", *self.extras)

    def passed(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return what of this machine's environment programs get; `env` of the settings wins."""
        patterns = (*_PASSED, *self.pass_env)
        found = {
            name: value
            for name, value in env.items()
            if name in self.pass_env
            or (any(fnmatchcase(name, p) for p in patterns) and not any(fnmatchcase(name, p) for p in _NOT_PASSED))
        }
        return found | self.env


def parse_settings(raw: Mapping[str, Any]) -> Settings:
    """Check a cluster's entry.

    Raises:
        ClusterError: names what is wrong.
    """
    known = {f.name: str(f.type) for f in fields(Settings)}
    for name in raw:
        if name not in known:
            raise ClusterError(f"clusters.toml: ssh has no setting {name!r}; there are: {', '.join(known)}")
    values = {name: _convert(name, value, known[name]) for name, value in raw.items()}
    if not values.get("hosts"):
        raise ClusterError('clusters.toml: an ssh cluster needs hosts, for example hosts = ["gpu1", "gpu2"]')
    settings = Settings(**values)
    _check(settings)
    return settings


def _convert(name: str, value: Any, kind: str) -> Any:
    type_, spelled = _KINDS[kind]
    items = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    wrong = not isinstance(value, type_) or (type_ is int and isinstance(value, bool))
    if wrong or not all(isinstance(item, str) for item in items):
        raise ClusterError(f"clusters.toml: {name} is {value!r}, and should be {spelled}")
    return tuple(value) if type_ is list else value


def _check(settings: Settings) -> None:
    hosts = (*settings.hosts, *((settings.rendezvous,) if settings.rendezvous else ()))
    for host in hosts:
        if not re.fullmatch(r"[\w@.:-]+", host) or host.startswith("-"):
            raise ClusterError(f"clusters.toml: {host!r} is no host; write gpu1, or user@gpu1")
    if len(set(settings.hosts)) < len(settings.hosts):
        raise ClusterError("clusters.toml: a host is named twice in hosts; slots = 2 makes each host two nodes")
    if settings.slots < 1:
        raise ClusterError(f"clusters.toml: slots is {settings.slots}, and should be 1 or more")
    if settings.keep < 0:
        raise ClusterError(f"clusters.toml: keep is {settings.keep}, and should be 1 or more, or 0 to keep everything")
    if unknown := [e for e in settings.extras if e not in _EXTRAS]:
        raise ClusterError(
            f"clusters.toml: extras has {', '.join(unknown)}, and there are: {', '.join(_EXTRAS)}; for other packages"
            " name a file in requirements"
        )
    if not 0 <= settings.port <= 65535:
        raise ClusterError(f"clusters.toml: port is {settings.port}, and ports go from 1 to 65535")
    if not re.fullmatch(r"[\w./+~-]*", settings.python):
        raise ClusterError(f"clusters.toml: python is {settings.python!r}: a path without spaces is needed")
    _check_paths(settings)


def _check_paths(settings: Settings) -> None:
    for name in ("work", "cache", "project"):
        path = getattr(settings, name)
        # A relative one would be another folder for each program that is started; no shell is there to see variables.
        if path != getattr(Settings, name) and not re.fullmatch(r"~|~?/[^$]*", path):
            raise ClusterError(f"clusters.toml: {name} is {path!r}: a path on the hosts is needed, from / or ~/ on")
