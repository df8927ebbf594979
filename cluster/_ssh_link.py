"""One connection to a host that all its requests go through, opened again whenever it breaks.

Requests and answers travel over the standard input and output of one `ssh`; at its other end `cluster._host` serves
them, for as long as the connection lasts. So a look at a program costs one round trip, and nothing stays on the host.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from cluster import ClusterError, Unreachable
from cluster._host import READY
from cluster._ssh_client import ALIVE_COUNT, ALIVE_S, CONNECT_S, Complaint, Target, bootstrap, explain, ssh_argv
from cluster._turns import Turns

_MODULES = ("_machine", "_marks", "_host_processes", "_host_claims", "_host_files", "_host_prune", "_host")
_NOISE_LIMIT = 1 << 20  # bytes that login scripts may print
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # the last one again and again
_END_S = 3.0
_SOON_S = 2.0  # how long `glance` waits
_CROWDED_TRIES = 5  # a host or its jump host that has too many logins at once refuses some of them
_TURN_S = 600.0  # turns end by themselves: this is for several thousand hosts that do not answer
_TURNS = Turns(8, 3.0)  # of this process's logins. An sshd drops some of more than 10: sshd_config(5), MaxStartups
PATIENCE_S = CONNECT_S + ALIVE_S * ALIVE_COUNT
"""How long `ask` waits for a connection: a broken one is noticed and opened again within this time."""


class Broken(Unreachable):
    """The connection broke after a request had been sent."""


class Answer(NamedTuple):
    """What the host said to a request."""

    value: Any
    body: bytes


class Link:
    """A connection to one host. Any thread may use it."""

    def __init__(self, target: Target) -> None:
        """Make one; it connects when it is first used."""
        self.target = target
        self._changed = threading.Condition()
        self._ssh: subprocess.Popen[bytes] | None = None
        self._up = self._closed = self._begun = False
        self._tries = 0  # connections that ended, since the last one that was up
        self._complaint: Complaint | None = None
        self._number = 0
        self._answers: dict[int, tuple[dict[str, Any], bytes]] = {}
        self._awaited: set[int] = set()
        self._late: int | None = None  # a request that was not answered soon; no `glance` is made until it is
        self._heard = self._down_since = time.monotonic()
        self._thread: threading.Thread | None = None

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(
        self,
        action: str,
        body: bytes = b"",
        *,
        timeout_s: float = 60.0,
        patience_s: float = PATIENCE_S,
        **arguments: Any,
    ) -> Answer:
        """Have an action of `cluster._host` done; a connection is waited for up to `patience_s` after the last one.

        Raises:
            Unreachable: no connection, or no answer in time; it may or may not have been done.
            ClusterError: it cannot be done.
        """
        self._open()
        with self._changed:
            self._await_up(patience_s)
            number = self._send(action, arguments, body)
            if not self._changed.wait_for(lambda: number in self._answers or number not in self._awaited, timeout_s):
                self._awaited.discard(number)
                raise Unreachable(f"{self.target.host} did not answer within {timeout_s:g} s")
            return self._take(number)

    def glance(self, action: str, **arguments: Any) -> Answer | None:
        """Have a quick action done; None if the host cannot be asked now or does not answer at once.

        Raises:
            ClusterError: it cannot be done.
        """
        self._open()
        with self._changed:
            if not self._up or (self._late is not None and self._late in self._awaited):
                return None
            with contextlib.suppress(Unreachable):
                number = self._send(action, arguments, b"")
                over = self._changed.wait_for(lambda: number in self._answers or number not in self._awaited, _SOON_S)
                if over:
                    return self._take(number)
                self._late = number
            return None

    def silence_s(self) -> float:
        """Return for how many seconds nothing was heard of the host; 0 while it answers."""
        with self._changed:
            quiet = time.monotonic() - self._heard
            waiting = self._late is not None and self._late in self._awaited
            return quiet if waiting or (self._thread is not None and not self._up) else 0.0

    def _await_up(self, patience_s: float) -> None:
        """Wait for a connection; the first try's complaint is final, a later one's only if it will not pass.

        The time since there was one counts: a host that has long been away costs its callers little. Not the time
        until the first one could be tried: there may be many hosts.
        """
        first = self._tries == 0 and not self._up
        self._changed.wait_for(lambda: self._begun or self._closed, _TURN_S)
        left_s = max(_SOON_S, patience_s - (time.monotonic() - self._down_since))
        self._changed.wait_for(
            lambda: self._up or self._closed or self._hopeless() or (first and self._refused()), left_s
        )
        if self._up:
            return
        text = self._complaint.text if self._complaint else f"{self.target.host} does not answer"
        raise Unreachable(text)

    def _hopeless(self) -> bool:
        return self._tries > 0 and self._complaint is not None and not self._complaint.passing

    def _refused(self) -> bool:
        """Tell whether it has been tried enough: again only where it may be for the crowd of our own logins."""
        crowded = self._complaint is not None and self._complaint.crowded
        return self._tries >= (_CROWDED_TRIES if crowded else 1)

    def _send(self, action: str, arguments: dict[str, Any], body: bytes) -> int:
        assert self._ssh is not None
        assert self._ssh.stdin is not None
        self._number += 1
        head = json.dumps({"id": self._number, "do": action, "body": len(body), **arguments})
        try:
            self._ssh.stdin.write(head.encode() + b"\n" + body)
            self._ssh.stdin.flush()
        except (OSError, ValueError) as error:
            raise Broken(f"{self.target.host}: the connection broke") from error
        self._awaited.add(self._number)
        return self._number

    def _take(self, number: int) -> Answer:
        self._awaited.discard(number)
        if number not in self._answers:
            raise Broken(f"{self.target.host}: the connection broke")
        answer, body = self._answers.pop(number)
        if "error" in answer:
            assert answer["kind"] == "user", answer["error"]
            raise ClusterError(f"{self.target.host}: {answer['error']}")
        return Answer(answer["value"], body)

    # -- the connection -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed:
                self._heard = self._down_since = time.monotonic()
                self._thread = threading.Thread(target=self._serve, name=f"ssh {self.target.host}", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """End the connection; requests fail from now on."""
        with self._changed:
            self._closed = True
            ssh, thread = self._ssh, self._thread
            self._changed.notify_all()
        atexit.unregister(self.close)
        if ssh:
            ssh.kill()
        if thread:
            thread.join(_END_S)

    def _serve(self) -> None:
        """Connect, take in answers, and connect again, until closed."""
        while not self._closed:
            self._connect_once()
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _BACKOFF_S[min(self._tries, len(_BACKOFF_S)) - 1])

    def _connect_once(self) -> None:
        with tempfile.TemporaryFile() as said, _TURNS.turn(lambda: self._closed) as logged_in:
            if self._closed:
                return
            self._begin()
            source = program()
            argv = ssh_argv(self.target, bootstrap(self.target.python, len(source)))
            try:
                ssh = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
                )
            except OSError as error:
                self._ended(Complaint(f"cannot start ssh: {error}; install OpenSSH's client", False))
                return
            try:
                self._converse(ssh, source, logged_in)
            finally:
                _end(ssh)
                said.seek(0)
                self._ended(explain(self.target, said.read().decode(errors="replace")))

    def _begin(self) -> None:
        with self._changed:
            if not self._begun:
                self._begun, self._heard = True, time.monotonic()
                self._down_since = self._heard
                self._changed.notify_all()

    def _converse(self, ssh: subprocess.Popen[bytes], source: bytes, logged_in: Callable[[], None]) -> None:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        with self._changed:
            self._ssh = ssh
            if self._closed:
                return
        with contextlib.suppress(OSError):  # it ends before it has read: what it says on its standard error tells why
            ssh.stdin.write(source)
            ssh.stdin.flush()
        if not _skip_noise(ssh.stdout):
            return
        logged_in()
        with self._changed:
            self._up, self._tries, self._complaint, self._late = True, 0, None, None
            self._heard = time.monotonic()
            self._changed.notify_all()
        while line := ssh.stdout.readline():
            answer = json.loads(line)
            body = ssh.stdout.read(answer["body"])
            with self._changed:
                self._heard = time.monotonic()
                if answer["id"] in self._awaited:
                    self._answers[answer["id"]] = (answer, body)
                    if answer["id"] == self._late:  # nobody waits for it any more
                        del self._answers[answer["id"]]
                        self._awaited.discard(answer["id"])
                self._changed.notify_all()

    def _ended(self, complaint: Complaint) -> None:
        with self._changed:
            if self._up:
                self._down_since = time.monotonic()
            self._up, self._ssh = False, None
            self._tries += 1
            self._complaint = complaint
            self._awaited.clear()  # whoever waits is told that the connection broke
            self._answers.clear()
            self._changed.notify_all()


def _end(ssh: subprocess.Popen[bytes]) -> None:
    """Kill and wait for an `ssh`, and close its pipes."""
    ssh.kill()
    ssh.wait()
    for pipe in (ssh.stdin, ssh.stdout):
        with contextlib.suppress(OSError):  # what was not sent cannot be any more
            if pipe:
                pipe.close()


def _skip_noise(output: IO[bytes]) -> bool:
    """Read past what login scripts print; False if the connection ended before ours was up."""
    seen = b""
    while not seen.endswith(READY) and len(seen) < _NOISE_LIMIT:
        byte = output.read(1)
        if not byte:
            return False
        seen += byte
    return seen.endswith(READY)


def program() -> bytes:
    """Return the program that serves at the other end: the modules of `cluster` that run on a node, in one."""
    folder = Path(__file__).parent
    sources = {f"cluster.{name}": (folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}
    lines = [
        "import sys, types",
        "package = sys.modules['cluster'] = types.ModuleType('cluster')",
        f"for name, source in {sources!r}.items():",
        "    module = sys.modules[name] = types.ModuleType(name)",
        "    setattr(package, name.split('.')[1], module)",
        "    exec(compile(source, name, 'exec'), module.__dict__)",
        "sys.modules['cluster._host'].main()",
    ]
    return "\n".join(lines).encode()


_links: dict[Target, Link] = {}
_links_lock = threading.Lock()


def link_to(target: Target) -> Link:
    """Return this process's connection to a host: clusters that are opened twice share it."""
    with _links_lock:
        if target not in _links:
            _links[target] = Link(target)
        return _links[target]


def leave(target: Target) -> None:
    """End this process's connection to a host, if there is one; what asks for it next gets a new one."""
    with _links_lock:
        link = _links.pop(target, None)
    if link:
        link.close()


def close_links() -> None:
    """End all connections of this process."""
    with _links_lock:
        ended = list(_links.values())
        _links.clear()
    for link in ended:
        link.close()


if hasattr(os, "register_at_fork"):  # a child has none of our threads
    os.register_at_fork(after_in_child=_links.clear)
