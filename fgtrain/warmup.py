"""The warm process of an agent: `python -m fgtrain.warmup STORE RUN FOLDER`, the arguments of a worker.

It imports what workers will need, and forks one whenever `fgtrain.warm_client` asks. It has a single thread and touches
no device, so that a fork is as good as a fresh process: thread pools, CUDA and random generators begin in the worker.
"""

from __future__ import annotations

import os

from fgtrain.lifeline import die_with_parent

if __name__ == "__main__":  # before anything slow
    die_with_parent(parent=int(os.environ["FGLAUNCH_AGENT_PID"]) if "FGLAUNCH_AGENT_PID" in os.environ else None)

import contextlib
import ctypes
import gc
import importlib
import json
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from fgtrain.departure import EXIT_LEFT
from fgtrain.phases import ROUND
from fgtrain.plan import DETECT_S
from fgtrain.warm import EXIT_UNFIT, PRELOAD, READY, SOCKET
from fgtrain.warm_client import peer_uid

_LEFT = (0, EXIT_LEFT)  # exit statuses that all ranks share: nobody is left hanging
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_ARG_START, _ARG_END = 45, 46  # fields 48 and 49, counted from the one after the name. Source: proc(5)
_TICK_S = 0.25  # while a worker is stopped
_LARGEST = 1 << 24  # bytes of a request


class Request(NamedTuple):
    """A worker to be: its arguments, environment, working folder, and file descriptors for 0, 1, 2."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    fds: list[int]


class Worker:
    """A forked worker and the connection of the client that stands for it."""

    def __init__(self, pid: int, connection: socket.socket, round_: str) -> None:
        self.pid, self.connection, self.round = pid, connection, round_
        self.stopped_since: float | None = None

    def kill(self) -> None:
        """Kill it and its loader processes; it has a process group of its own."""
        for kill in (os.killpg, os.kill):  # it may not have got as far as to have one
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)


class Server:
    """Forks workers on request, passes signals on, reports how they end."""

    def __init__(self, listener: socket.socket, stopped_s: float) -> None:
        """Serve on a listening socket; a worker that stays stopped (SIGSTOP) for `stopped_s` is killed."""
        self._listener, self._stopped_s = listener, stopped_s
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, Worker] = {}
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def serve(self) -> Request:
        """Serve for ever; returns only in a forked worker, with what it is to be."""
        while True:
            any_stopped = any(w.stopped_since is not None for w in self._workers.values())
            for key, _ in self._selector.select(_TICK_S if any_stopped else None):
                if key.fileobj is self._listener:
                    if request := self._accept():
                        return request
                elif key.fileobj is self._wake:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                elif isinstance(key.data, Worker):
                    self._hear(key.data)
            self._reap()
            self._end_stopped()

    def _accept(self) -> Request | None:
        connection, _ = self._listener.accept()
        try:
            if peer_uid(connection) != os.getuid():
                raise OSError("another user asks")
            connection.settimeout(10.0)
            request = receive(connection)
            connection.setblocking(False)
        except (OSError, ValueError):
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._leave()
            connection.close()
            return request
        for fd in request.fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # its end is about to be read
            connection.sendall(f"pid {pid}\n".encode())
        worker = Worker(pid, connection, request.env.get(ROUND, ""))
        self._workers[pid] = worker
        self._selector.register(connection, selectors.EVENT_READ, worker)
        return None

    def _leave(self) -> None:
        """In the worker: let go of everything that is the server's."""
        signal.set_wakeup_fd(-1)
        for sig in (signal.SIGCHLD, *_IGNORED):
            signal.signal(sig, signal.SIG_DFL)
        for worker in self._workers.values():
            worker.connection.close()
        for thing in (self._selector, self._listener, self._wake, self._waker):
            thing.close()

    def _hear(self, worker: Worker) -> None:
        """Pass signals on; without its client, a worker is killed."""
        try:
            data = worker.connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(worker.connection)
            worker.kill()
        for signum in data:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signum)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.get(pid)
            if worker is None:
                continue
            if os.WIFSTOPPED(status):
                worker.stopped_since = time.monotonic()
            elif os.WIFCONTINUED(status):
                worker.stopped_since = None
            else:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: Worker, code: int) -> None:
        """Report an end. The others of a round that lost one would only hang in its collectives: they go too."""
        del self._workers[worker.pid]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.connection)
        with contextlib.suppress(OSError):
            worker.connection.sendall(f"exit {code}\n".encode())
        worker.connection.close()
        if code not in _LEFT:
            for other in self._workers.values():
                if other.round == worker.round:
                    other.kill()

    def _end_stopped(self) -> None:
        for worker in self._workers.values():
            if worker.stopped_since is not None and time.monotonic() - worker.stopped_since >= self._stopped_s:
                print(f"worker {worker.pid} is stopped: killed", file=sys.stderr, flush=True)
                worker.kill()


def receive(connection: socket.socket) -> Request:
    """Read a request.

    Raises:
        OSError, ValueError: it broke off, or is none.
    """
    data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    try:
        while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
            some = connection.recv(1 << 16)
            if not some or len(data) > _LARGEST:
                raise OSError("the request broke off")
            data += some
        body: dict[str, Any] = json.loads(data[8:])
        return Request(body["argv"], body["env"], body["cwd"], fds)
    except (OSError, ValueError, KeyError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError("no request") from error


def become(request: Request, parent: int) -> None:
    """Turn this process, just forked, into the worker that was asked for."""
    os.setsid()
    die_with_parent(parent=parent)
    for number, fd in enumerate(request.fds):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)
    sys.argv = ["fgtrain.worker", *request.argv]
    _call_it_a_worker()


def _call_it_a_worker() -> None:
    """Have `ps` show a worker: the words of the command line lie in memory, and "warmup" is as long as "worker"."""
    with contextlib.suppress(OSError, ValueError):
        stat = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
        start, end = int(stat[_ARG_START]), int(stat[_ARG_END])
        at = Path("/proc/self/cmdline").read_bytes().find(b"\0fgtrain.warmup\0")
        if 0 <= at < end - start:
            ctypes.memmove(start + at + 1, b"fgtrain.worker", len("fgtrain.worker"))


def preload(modules: str) -> None:
    """Import modules, and have those that import lazily do so now; what fails is left to the worker."""
    for name in filter(None, modules.split(",")):
        try:
            module = importlib.import_module(name)
            getattr(module, "preload", lambda: None)()
        except Exception:
            traceback.print_exc()


def threads() -> int:
    """Return how many threads this process has."""
    return len(list(Path("/proc/self/task").iterdir()))


def _tell_ready() -> None:
    if told := os.environ.pop(READY, None):
        with contextlib.suppress(OSError):  # the agent has died, and soon this process
            os.write(int(told), b"1")
        os.close(int(told))


def main() -> int:
    """Serve; in a forked worker, do its work and return its exit status."""
    for sig in _IGNORED:  # notices are for agents and workers
        signal.signal(sig, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{os.environ[SOCKET]}")
    listener.listen(128)  # who asks too early waits
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's; it makes its threads when it is imported
    preload(os.environ.get(PRELOAD, ""))
    if threads() > 1:
        print(f"warm starts are off: {threads()} threads after the imports", file=sys.stderr, flush=True)
        return EXIT_UNFIT
    gc.collect()
    gc.freeze()
    _tell_ready()
    server, mine = Server(listener, float(os.environ.get("FGLAUNCH_DETECT_S", DETECT_S))), os.getpid()
    request = server.serve()
    begun = time.time()
    become(request, mine)
    from fgtrain import worker

    return worker.main(begun)


if __name__ == "__main__":
    sys.exit(main())
