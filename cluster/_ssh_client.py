"""OpenSSH's client: command lines, and what its complaints mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

CONNECT_S = 10
ALIVE_S = 5
ALIVE_COUNT = 3
"""A connection is given up after ALIVE_S * ALIVE_COUNT seconds without a sign of life."""

_OPTIONS = (
    "BatchMode=yes",  # never ask: nobody would see it
    f"ConnectTimeout={CONNECT_S}",
    f"ServerAliveInterval={ALIVE_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
    "ControlMaster=no",  # a master that the user has opened is used; none is left behind
    "ClearAllForwardings=yes",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "EscapeChar=none",
)


class Meaning(NamedTuple):
    """What a complaint of ssh comes to; `passing`: it may go away by itself.

    PYTHON in the pattern stands for our interpreter there; the words may have {0}, {1} for the pattern's groups.
    """

    pattern: str
    words: str
    passing: bool = False


_MEANINGS = (
    # Source: the messages of OpenSSH's ssh.c, sshconnect.c, sshconnect2.c, readconf.c
    Meaning(
        r"Can't open user config file (.+): (.+)",
        "ssh_config of clusters.toml is {0}, which cannot be read: {1}",
    ),
    Meaning(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed: if you know why, `ssh-keygen -R` it and log in once by hand",
    ),
    Meaning(
        r"Host key verification failed|No \S+ host key is known",
        "its host key is not known here: log in once by hand (`ssh {host}`) and compare it",
    ),
    Meaning(
        r"Identity file (.+) not accessible: (.+)\.(?s:.*)Permission denied",
        "the key file {0} cannot be read ({1}), and it takes no other key",
    ),
    Meaning(
        r"Permission denied|Too many authentication failures|no mutual signature",
        "it takes none of your keys: `ssh-copy-id {host}`, or `ssh-add` a key that has a passphrase",
    ),
    Meaning(
        r"Could not resolve hostname", "there is no host of this name: see hosts in clusters.toml, and ~/.ssh/config"
    ),
    Meaning(r"Connection refused", "nothing answers at its SSH port: is sshd up, is the port right?", passing=True),
    Meaning(
        r"((Connection )?timed out|No route to host|Network is unreachable|Host is down)",
        "it does not answer ({found})",
        passing=True,
    ),
    Meaning(  # the port is unknown where a program is the connection
        r"(?m)^(.*(?:not found|No such file or directory))$(?s:.*)UNKNOWN port",
        "its ProxyCommand cannot be run: {0}",
    ),
    Meaning(
        r"(?mi)^(?!warning:)(?=.*PYTHON).*(not found|no such file or directory)",
        "{python} is not there: install python3, or set python in clusters.toml",
    ),
    Meaning(
        r"(Bad configuration option.*|Bad owner or permissions.*|.*terminating, \d+ bad configuration options)",
        "{found}",
    ),
)

_CROWDED = r"kex_exchange_identification|Connection (closed|reset) by"


class Target(NamedTuple):
    """A host as the user's configuration names it, and how to get there; `python` runs our side of the connection."""

    host: str
    user: str = ""
    port: int = 0
    config: str = ""
    options: tuple[str, ...] = ()
    python: str = "python3"


class Complaint(NamedTuple):
    """Why there is no connection, in one line; `passing`: it may go away by itself.

    `crowded`: it may be that too many logged in at once, to the host or to one on the way.
    """

    text: str
    passing: bool
    crowded: bool = False


def ssh_argv(target: Target, command: str) -> list[str]:
    """Return the command line that runs a shell command on a host. The user's options come first: ssh takes those."""
    argv = ["ssh", "-T"]
    for option in (*target.options, *_OPTIONS):
        argv += ["-o", option]
    argv += ["-F", target.config] if target.config else []
    argv += ["-p", str(target.port)] if target.port else []
    argv += ["-l", target.user] if target.user else []
    return [*argv, "--", target.host, command]


def bootstrap(python: str, length: int) -> str:
    """Return the shell command that runs a program of `length` bytes from standard input, in any login shell.

    Its source says what it is to whoever looks at the host's processes.
    """
    if not re.fullmatch(r"[\w./+~-]+", python):
        raise ValueError(f"not a plain path: {python!r}")
    return f"exec {python} -c 'import sys; exec(sys.stdin.buffer.read({length}))  # fglaunch, while it is connected'"


def explain(target: Target, said: str) -> Complaint:
    """Return what ssh's complaints come to."""
    python = f"(?:python|{re.escape(target.python.lstrip('~'))})"  # the shell there has put its home for a ~
    for pattern, words, passing in _MEANINGS:
        if found := re.search(pattern.replace("PYTHON", python), said):
            text = words.format(*found.groups(), host=target.host, python=target.python, found=found[0].strip())
            return Complaint(f"{target.host}: {text}", passing)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = f"{target.host}: {lines[-1] if lines else 'the connection broke'}"
    return Complaint(text, True, crowded=bool(re.search(_CROWDED, said)))


def parse_config(text: str) -> dict[str, str]:
    """Return the values of `ssh -G`, which is how ssh itself reads ~/.ssh/config; of a repeated name, the first."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, value)
    return found


def config_argv(target: Target) -> Sequence[str]:
    """Return the command line that has ssh print what it knows of a host; it does not connect."""
    argv = ssh_argv(target, "true")
    return [argv[0], "-G", *argv[1:]]
