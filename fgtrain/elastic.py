"""torchrun's elastic agent, with our meeting, our limits, and workers that come from a warm process."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.metrics import initialize_metrics
from torch.distributed.elastic.metrics.api import MetricsConfig
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, parse_args

from fgtrain import warm, warm_client
from fgtrain.board import NoStore, Settings
from fgtrain.departure import EXIT_LEFT, Departure, node_name
from fgtrain.endpoint import Endpoint
from fgtrain.meeting import CONNECT_S, EXIT_NO_STORE, JOIN_S, Alarm, Rendezvous, say
from fgtrain.membership import Member, Seats
from fgtrain.notice import LEAVES
from fgtrain.plan import DETECT_S
from fgtrain.stopped import Stopped

DEEPSPEED = "fgtrain.deepspeed_launch"
"""What is started in the workers' place where DeepSpeed's launcher is to start them."""

_END_S = 2.0
_EXIT_BARRIER_S = 30.0
_LAST_CALL_S = 3.0
_WARM_S = 60.0


class Agent(LocalElasticAgent):
    """Starts this node's workers, and starts them again, unless the node was told to leave."""

    meeting: Rendezvous
    departure: Departure
    grace_s: int
    ended: dict[int, float]
    stopped: Stopped
    force: signal.Signals

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        looked = time.time()
        self._end_stopped()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state != WorkerState.HEALTHY:
            self.meeting.noticed = looked
            codes = {failure.exitcode for failure in result.failures.values()}
            self.meeting.left = codes == {EXIT_LEFT}
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self.departure.flag.leaves:
            raise SignalException("the node was told to leave", signal.SIGTERM)
        if worker_group.state == WorkerState.HEALTHY:  # nodes wait to be let in
            self.meeting.noticed = time.time()
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(signal.SIGTERM, self.grace_s)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        if isinstance(error := sys.exception(), SignalException) and not self.departure.flag.leaves:
            self.departure.signalled(error.sigval)
        super()._shutdown(death_sig, timeout)

    def end_workers(self) -> None:
        """Have the local workers killed, whose round is over; those that are not gone soon, by force. Call it again."""
        now = time.monotonic()
        for pid in self._workers():
            late = now - self.ended.setdefault(pid, now) > _END_S
            os.killpg(pid, signal.SIGKILL if late else warm_client.OVER_SIGNAL)

    def kill_workers(self) -> None:
        """Kill the local workers; from any thread."""
        for pid in self._workers():
            os.killpg(pid, self.force)

    def _end_stopped(self) -> None:
        """Kill workers that stay stopped. (Those that are forked are their warm process's to look after.)"""
        for pid in self.stopped.look(self._workers(), time.monotonic()):
            say(f"worker {pid} is stopped: killed")
            os.killpg(pid, signal.SIGKILL)

    def _workers(self) -> list[int]:
        """Return the process IDs of the local workers that live, each the leader of a process group."""
        return [w.id for w in self.get_worker_group().workers if isinstance(w.id, int) and _is_child(w.id)]


def run(argv: Sequence[str], departure: Departure, *, again: bool = False) -> int:
    """Run one node's agent on torchrun's arguments, for the first time or `again`; returns its exit status."""
    args = parse_args([*argv])  # type: ignore[no-untyped-call]
    launched = args.training_script == DEEPSPEED
    if not launched:
        _start_by_client(args)
    args.log_dir = str(Path(args.training_script_args[-1]) / "elastic")  # else in a temporary folder, which stays
    config, entrypoint, worker_args = config_from_args(args)
    assert isinstance(entrypoint, str)
    initialize_metrics(MetricsConfig(config.metrics_cfg))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = config.signals_to_handle
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # all nodes have as many: ranks follow without asking around
    box: list[Agent] = []

    def end_workers() -> None:
        for agent in box:
            agent.end_workers()

    def kill_workers() -> None:
        for agent in box:
            agent.kill_workers()

    try:
        meeting = Rendezvous(
            _settings(config, args.training_script_args[-1]),
            Alarm(end_workers, lambda: _again(kill_workers)),
            JOIN_S if again else CONNECT_S,
        )
    except (DistError, NoStore) as error:
        say(str(error).splitlines()[0])
        return EXIT_NO_STORE
    agent = _make(config, entrypoint, worker_args, meeting)
    agent.departure, agent.ended = departure, {}
    agent.force = warm_client.OVER_SIGNAL if launched else signal.SIGKILL  # a launcher takes its workers along
    box.append(agent)
    if meeting.goes_on_without():  # once this node asks to be let in, the others stop and wait for its workers
        warm.await_ready(_WARM_S)
    return _work(agent, meeting)


def _start_by_client(args: argparse.Namespace) -> None:
    """Have workers started by the client of the warm process, in place of `python -m fgtrain.worker`."""
    assert args.training_script == "fgtrain.worker"
    client = [sys.executable, "-I", "-S", str(Path(warm_client.__file__)), *args.training_script_args]
    args.module, args.no_python = False, True
    args.training_script, args.training_script_args = client[0], client[1:]


def _settings(config: LaunchConfig, folder: str) -> Settings:
    return Settings(
        where=Endpoint(config.rdzv_endpoint, Path(folder)),
        run=config.run_id,
        me=Member(secrets.token_hex(8), node_name(folder)),
        seats=Seats(config.min_nodes, config.max_nodes),
        detect_s=float(config.rdzv_configs.get("detect", DETECT_S)),
        last_call_s=float(config.rdzv_configs.get("last_call", _LAST_CALL_S)),
    )


def _make(config: LaunchConfig, entrypoint: str, args: Sequence[str], meeting: Rendezvous) -> Agent:
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(args),
        rdzv_handler=meeting,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    assert config.logs_specs is not None and config.shutdown_timeout is not None
    agent = Agent(
        spec,
        config.logs_specs,
        exit_barrier_timeout=_EXIT_BARRIER_S,
        shutdown_timeout=config.shutdown_timeout,
    )
    agent.meeting, agent.grace_s = meeting, config.shutdown_timeout
    agent.stopped = Stopped(meeting.detect_s)
    return agent


def _work(agent: Agent, meeting: Rendezvous) -> int:
    try:
        result = agent.run()
    except RendezvousClosedError:
        return 0  # the others have finished the work
    except SignalException:
        if agent.departure.flag.leaves:
            say(LEAVES)
        meeting.shutdown()
        return EXIT_LEFT
    except (DistError, NoStore) as error:
        say(f"the store that agents meet in is gone: {error}".splitlines()[0])
        return EXIT_NO_STORE
    except BaseException:
        meeting.shutdown()
        raise
    if result is None or result.is_failed():
        meeting.shutdown()
        return 1
    meeting.set_closed()
    return 0


def _again(kill_workers: Callable[[], None]) -> NoReturn:
    """Begin anew after silence: no old worker trains on, no old connection is waited for; then come back in."""
    kill_workers()
    for fd in [int(link.name) for link in Path("/proc/self/fd").iterdir()] if sys.platform == "linux" else []:
        with contextlib.suppress(OSError):  # the one that the list was read from is closed by now
            os.set_inheritable(fd, fd <= 2)  # torch's sockets would be inherited
    try:
        os.execv(sys.executable, [sys.executable, "-m", "fgtrain.agent", *sys.argv[1:]])
    except OSError:
        os._exit(EXIT_NO_STORE)


def _is_child(pid: int) -> bool:
    """Tell whether a process is still this one's child: its number may have gone to another."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return int(after_name[1]) == os.getpid()  # field 4, ppid. Source: proc(5)
