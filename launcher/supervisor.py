"""Supervising one run: start an agent a node, keep them going, end honestly."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType

import msgspec

from cluster import Cluster, ClusterError, Command, Hardware, Node, Process, Rented, Unreachable
from fgtrain.errors import StoreError
from fgtrain.plan import World
from fgtrain.runstore import Attempt, Failure, Result, RunFile, RunStore
from launcher import engine, failures
from launcher.events import Event, decode_events, whole_lines
from launcher.status import HEARTBEAT_S, Status, process_token

_POLL_S = 0.1
_STORE_POLL_S = 1.0
_FORGET_TIMEOUT_S = 10.0
_SILENCE_S = 5.0  # of a node, before the user is told
_GRACE_S = 3.0  # from asking agents to stop to killing them: Ctrl-C is over within 5 s
"""How long workers have to take a last snapshot when the user stops a run."""


class Outcome(msgspec.Struct, frozen=True):
    """How supervision ended: finished, stopped or failed, the exit code, and one line (and a traceback) on why."""

    state: str
    exit_code: int
    message: str = ""
    traceback: str = ""


class Supervisor:
    """Runs one run on a cluster until it is finished, stopped or beyond help."""

    def __init__(
        self,
        run: RunFile,
        runs: RunStore,
        cluster_name: str,
        cluster: Cluster,
        world: World,
        show: Callable[[Event], None],
        port: int | None,
    ) -> None:
        self._run, self._runs, self._cluster, self._world, self._show = run, runs, cluster, world, show
        self._port, self._cluster_name = port, cluster_name
        self._nodes: list[Node] = cluster.nodes(run.name, world.nodes)
        self._meeting = cluster.rendezvous_node(run.name)
        self._shares = cluster.hardware(self._nodes)
        self._silent: set[str] = set()
        self._agents: dict[str, Process] = {}
        self._rendezvous: Process | None = None
        self._offsets = {n.name: len(cluster.read(n, "events.jsonl", 0)) for n in self._nodes}
        self._step = 0
        self._begun = time.time()
        self._deaths = 0  # of agents, since the run last moved
        self._interrupted = False
        self._told: list[Failure] = []  # by workers that could not reach the store
        self._next_poll = self._next_heartbeat = 0.0

    def supervise(self) -> Outcome:
        """Run to the end. Nothing that was started is left running."""
        for leftover in ("stop", "result.json"):  # what an earlier supervision left must not be taken for this one's
            self._runs.store.delete(self._runs.key(leftover))
        restore = [(s, signal.signal(s, self._interrupt)) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._heartbeat("running")
            self._start()
            outcome = self._watch()
            self._stop_all()
            self._pass_on_events()
        finally:
            self._kill_all()
            self._free_memory()
            for sig, handler in restore:
                signal.signal(sig, handler)
        try:
            self._heartbeat(outcome.state, outcome.message)
        except StoreError as error:  # the outcome is what the user wants to hear of
            self._show({"event": "note", "text": f"the store does not answer: {error}"})
        return outcome

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._interrupted = True

    # -- processes ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._kill_leftovers()
        port = self._port or self._cluster.free_port(self._meeting)
        self._endpoint = f"{self._meeting.address}:{port}"
        self._rendezvous = self._cluster.start(self._meeting, rendezvous_command(self._meeting, port))
        for number, node in enumerate(self._nodes):
            self._start_agent(number, node)

    def _renew(self) -> None:
        """Have lost machines again, where they are rented; they may be others, at other addresses.

        Raises:
            ClusterError: nothing is to be had.
        """
        if isinstance(self._cluster, Rented):
            self._nodes = [self._cluster.renew(node) for node in self._nodes]
            self._meeting = self._cluster.rendezvous_node(self._run.name)
            self._shares = self._cluster.hardware(self._nodes)
            self._offsets = {n.name: len(self._cluster.read(n, "events.jsonl", 0)) for n in self._nodes}

    def _kill_leftovers(self) -> None:
        """Kill what an earlier supervisor left: there must not be two worlds of one run."""
        for name, nodes in (("rendezvous", [self._meeting]), ("agent", self._nodes)):
            for node in nodes:
                while leftover := self._cluster.find(node, name):
                    leftover.kill()

    def _start_agent(self, number: int, node: Node) -> None:
        share, url = self._shares[number], self._runs.store.url
        command = agent_command(self._run, url, self._world, node, share, self._endpoint)
        self._agents[node.name] = self._cluster.start(node, command)

    def _processes(self) -> Iterator[Process]:
        yield from self._agents.values()
        if self._rendezvous:
            yield self._rendezvous

    def _stop_all(self) -> None:
        """Ask everything to stop and wait a little; what is left is killed later."""
        for agent in self._agents.values():
            agent.terminate()
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and any(a.poll() is None for a in self._agents.values()):
            time.sleep(0.02)

    def _kill_all(self) -> None:
        for process in self._processes():
            process.kill()

    def _free_memory(self) -> None:
        """Free what the run's snapshots hold in the nodes' memory: it is over, and the store has its own."""
        freeing = []
        for node in self._nodes:
            argv = engine.forget_argv(node.python, run=self._run.name, folder=node.folder)
            with suppress(ClusterError):  # a node that is gone holds nothing
                freeing.append(self._cluster.start(node, Command("forget", argv, {})))
        for process in freeing:  # all at once: Ctrl-C waits for this
            process.wait(_FORGET_TIMEOUT_S)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _watch(self) -> Outcome:
        while True:
            self._pass_on_events()
            if self._interrupted:
                return Outcome("stopped", 130, "interrupted")
            outcome = self._poll_store()
            if outcome:
                return outcome
            codes = {name: agent.poll() for name, agent in self._agents.items()}
            if all(code == 0 for code in codes.values()):
                return self._verdict()
            if any(code is not None for code in codes.values()) and self._runs.exists("result.json"):
                return self._verdict()  # what died did so after the work was done
            self._replace(codes)
            if self._deaths >= failures.PATIENCE * len(self._nodes):
                return Outcome(
                    "failed",
                    1,
                    f"agents died {self._deaths} times and the run did not move",
                    self._agent_log(),
                )
            time.sleep(_POLL_S)

    def _agent_log(self) -> str:
        """Return the end of an agent's log, where a reason that no worker could report would be."""
        tails = (self._cluster.read(n, "agent.log", 0)[-2000:].decode(errors="replace") for n in self._nodes)
        return next((t for t in tails if t.strip()), "")

    def _replace(self, codes: dict[str, int | None]) -> None:
        """Start what died again; without the rendezvous store, agents could not meet, so all begin anew."""
        assert self._rendezvous is not None
        if self._rendezvous.poll() is not None:
            self._show({"event": "note", "text": "the rendezvous store died: all agents start again"})
            self._stop_all()
            self._kill_all()
            self._renew()
            self._start()
            return
        for number, node in enumerate(self._nodes):
            code = codes[node.name]
            if code not in (None, 0):
                self._show({"event": "note", "text": f"{node.name} died ({_spell_exit(code)}): started again"})
                self._agents[node.name].kill()
                self._deaths += 1
                with suppress(Unreachable):  # its last agent stays dead: tried again when it answers
                    self._start_agent(number, node)

    def _poll_store(self) -> Outcome | None:
        """Look, now and then, for a request to stop and for reasons to give up; write the heartbeat."""
        now = time.monotonic()
        if now < self._next_poll:
            return None
        self._next_poll = now + _STORE_POLL_S
        try:
            if self._runs.exists("stop"):
                return Outcome("stopped", 0, "stopped on request")
            if now >= self._next_heartbeat:
                self._heartbeat("running")
            attempts = [a for a in self._runs.read_all("attempts", Attempt) if a.started >= self._begun]
            failed = [f for f in self._runs.read_all("errors", Failure) if f.time >= self._begun]
        except StoreError as error:
            self._show({"event": "note", "text": f"the store does not answer: {error}"})
            attempts, failed = [], []
        verdict = failures.judge(attempts, [*failed, *self._told])
        return verdict and Outcome("failed", verdict.exit_code, verdict.message, verdict.traceback)

    def _verdict(self) -> Outcome:
        """All agents left with exit code 0: believe only what is committed."""
        try:
            result = self._runs.read("result.json", Result)
        except StoreError as error:
            return Outcome("failed", 1, f"the workers left, and the run has no result: {error}")
        if result.step != self._run.plan.steps:
            return Outcome("failed", 1, f"the run ended at step {result.step} of {self._run.plan.steps}")
        self._step = result.step
        return Outcome("finished", 0)

    # -- telling --------------------------------------------------------------------------------------------------

    def _tell_silence(self, node: Node) -> None:
        """Say when a node falls silent, and when it answers again; its programs may well live."""
        if (silent := self._cluster.silence_s(node) > _SILENCE_S) != (node.name in self._silent):
            self._silent ^= {node.name}
            text = "does not answer: waiting for it" if silent else "answers again"
            self._show({"event": "note", "text": f"{node.name} {text}"})

    def _pass_on_events(self) -> None:
        for node in self._nodes:
            self._tell_silence(node)
            data = self._cluster.read(node, "events.jsonl", self._offsets[node.name])
            whole = whole_lines(data)
            self._offsets[node.name] += len(whole)
            for event in decode_events(whole):
                if event["event"] == "failure":
                    self._told.append(msgspec.convert(event["failure"], Failure))
                if event["event"] == "step" and event["step"] > self._step:
                    self._step, self._deaths = event["step"], 0
                self._show(event)

    def _heartbeat(self, state: str, message: str = "") -> None:
        self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        status = Status(
            state=state,
            step=self._step,
            steps=self._run.plan.steps,
            updated=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            token=process_token(os.getpid()) or "",
            cluster=self._cluster_name,
            nodes=tuple(n.folder for n in self._nodes),
            message=message,
        )
        self._runs.write("status.json", status)


def rendezvous_command(node: Node, port: int | str) -> Command:
    """Return what to start on the first node, for the agents to meet in."""
    return Command("rendezvous", engine.rendezvous_argv(node.python, port), {})


def agent_command(run: RunFile, store_url: str, world: World, node: Node, share: Hardware, endpoint: str) -> Command:
    """Return what to start on a node that has this share of the hardware. Pure."""
    argv = engine.agent_argv(
        node.python,
        world=world,
        run=run.name,
        store=store_url,
        folder=node.folder,
        address=node.address,
        endpoint=endpoint,
    )
    mine = share.gpus[: world.gpus]
    threads = max(1, share.cores // world.gpus)
    env = engine.agent_env(
        threads=threads,
        address=node.address,
        devices=",".join(mine) if mine else None,
        bits=run.recipe.determinism == "bits",
    )
    return Command("agent", argv, env)


def _spell_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
