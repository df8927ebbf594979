"""Where notices come from: each file in this package is a source, found by its name.

A source's module has `find(machine) -> Source | None`: None where the machine is none of its own. Finding out costs no
request: a machine's firmware names its cloud, an environment its scheduler. `FGLAUNCH_NOTICES` overrides:

    FGLAUNCH_NOTICES=off                          watch for nothing but SIGTERM and SIGUSR1
    FGLAUNCH_NOTICES=aws                          this is AWS, whatever the firmware says
    FGLAUNCH_NOTICES=aws=http://127.0.0.1:8111    ... and its metadata service is there
    FGLAUNCH_NOTICES=gcp=http://127.0.0.1:81/{node}    ... one for each node of a rehearsal
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fgtrain.errors import UserError
from fgtrain.notice import Notice

VARIABLE = "FGLAUNCH_NOTICES"
_FIRMWARE = Path("/sys/class/dmi/id")
_FIELDS = ("sys_vendor", "product_name", "bios_vendor", "bios_version", "board_vendor", "chassis_asset_tag")


class Machine(NamedTuple):
    """What can be told of a machine without asking anybody.

    `firmware` holds fields of its DMI table, `env` its environment; `chosen` sources by name with the URL to ask ("":
    the usual one), None: find out; `node` is its name in the run.
    """

    node: str
    firmware: Mapping[str, str]
    env: Mapping[str, str]
    chosen: Mapping[str, str] | None = None

    def url(self, source: str, usual: str) -> str | None:
        """Return the URL to ask, None if the user has chosen other sources than this one."""
        if self.chosen is None:
            return usual
        if source not in self.chosen:
            return None
        return (self.chosen[source] or usual).replace("{node}", self.node)


class Source:
    """One kind of notice. What it does not have is left as it is here."""

    name: str
    watches: Sequence[Callable[[], list[Notice]]] = ()
    """What to call again and again, each in a thread of its own: returns all that is told now, after a wait of seconds,
    or waits until there is something new. What it returned before and does not any more has been called off.

    Raises OSError, ValueError or http.client.HTTPException."""

    def signalled(self, sig: signal.Signals, now: float) -> Notice | None:
        """Return what a signal to the agent means here; None if it means nothing special."""
        return None

    def left(self, notice: Notice) -> None:
        """The node has left because of `notice`: its last snapshot is committed. May raise what watches may."""


def this_machine(node: str, env: Mapping[str, str] = os.environ) -> Machine:
    """Look at this machine.

    Raises:
        UserError: $FGLAUNCH_NOTICES makes no sense.
    """
    firmware = {}
    for field in _FIELDS:
        try:
            firmware[field] = (_FIRMWARE / field).read_text(errors="replace").strip()
        except OSError:
            firmware[field] = ""
    return Machine(node, firmware, env, chosen(env.get(VARIABLE, "")))


def chosen(text: str) -> dict[str, str] | None:
    """Parse $FGLAUNCH_NOTICES: sources by name with a URL or ""; None if it is not set. Pure.

    Raises:
        UserError: a source that there is not, or a URL that is none.
    """
    if not text.strip():
        return None
    found = {}
    for item in text.split(","):
        name, _, url = item.strip().partition("=")
        if name == "off":
            continue
        if name not in names():
            raise UserError(f"{VARIABLE}={text}: no source {name!r}; there are off, {', '.join(names())}")
        if url and not url.startswith("http://"):
            raise UserError(f"{VARIABLE}={text}: {url!r} is no http:// URL")
        found[name] = url
    return found


def names() -> list[str]:
    """Return the names of the sources: the modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(machine: Machine) -> list[Source]:
    """Return the sources that a machine has; no request is made."""
    found = (importlib.import_module(f"{__name__}.{name}").find(machine) for name in names())
    return [source for source in found if source is not None]


def explain(sources: Sequence[Source], sig: signal.Signals, now: float) -> Notice:
    """Return what a signal to the agent means: what some source says, or that somebody wants the node to go."""
    for source in sources:
        if notice := source.signalled(sig, now):
            return notice
    return Notice(source="signal", what=sig.name, id=f"{sig.name}-{now}", loss=True, time=now)
