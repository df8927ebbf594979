"""The nodes of a run and what was started on them: a rendezvous store, and an agent a node."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cluster import Cluster, ClusterError, Command, Hardware, Node, Owner, Process, Rented
from fgtrain.plan import World
from fgtrain.runstore import RunFile
from launcher import engine
from launcher.abreast import each
from launcher.clock import Clock
from launcher.ownership import owner_of, still_own
from launcher.stores import Stores, find_each, kill_all, meeting_places
from launcher.takeover import Term

_FORGET_TIMEOUT_S = 10.0
_POLL_S = 0.02


@dataclass
class Seat:
    """A node's place in the run.

    `due` says when to start its agent, in the clock's seconds; None: not before somebody says so. `failures` counts the
    starts that came to nothing in a row; `endpoint` is where its agent was last told to meet the others. A node that
    joined a run that went well without it is on `probation` until it has taken a step: that is the attempt that was the
    newest when it joined.
    """

    node: Node
    agent: Process | None = None
    due: float | None = None
    failures: int = 0
    endpoint: str = ""
    probation: int | None = None


class Fleet:
    """Starts, finds, asks and kills; decides nothing."""

    def __init__(
        self,
        run: RunFile,
        store_url: str,
        cluster: Cluster,
        world: World,
        clock: Clock,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Start nothing yet; `note` is told what a node refuses: the others are gone on with."""
        self._note = note
        self.lease: Mapping[str, str] = {}
        """The environment of what must not outlive its supervisor for long."""
        self._run, self._url, self._cluster, self._world, self._clock = run, store_url, cluster, world, clock
        self._owner = owner_of(run, store_url)
        self.seats: list[Seat] = []
        self.stores = Stores(cluster, run.name, self._start, self._code, self._abandon)
        self._abandoned: list[tuple[Node, Process]] = []
        self._former: list[Node] = []
        self._strays: list[Node] = []  # an earlier supervisor did without what runs there
        self._helpers: list[Process] = []

    @property
    def nodes(self) -> list[Node]:
        """The nodes, by their number."""
        return [seat.node for seat in self.seats]

    def waits(self, now: float) -> bool:
        """Tell whether an agent is yet to be started, and not at once."""
        return any(s.agent is None and (s.due is None or s.due > now) for s in self.seats)

    def seat(self, name: str) -> Seat | None:
        """Return a node's place, None if it has none (any more)."""
        return next((s for s in self.seats if s.node.name == name), None)

    def unseat(self, seat: Seat) -> None:
        """Do without a node, and with what runs on it."""
        if self._cluster.silence_s(seat.node):
            self.abandon(seat)
        else:
            self.end_agents([seat])
        self.stores.leave_spare(seat.node)
        self.seats.remove(seat)
        self._former.append(seat.node)

    @property
    def gone(self) -> list[Node]:
        """Nodes that are done without, on which something may still run."""
        return [*(node for node, _ in self._abandoned), *self._strays]

    @property
    def former(self) -> set[str]:
        """The names of nodes that had a seat, and have none any more."""
        return {n.name for n in self._former} - {n.name for n in self.nodes}

    def name_at(self, folder: str) -> str:
        """Return the name of the node whose folder this is, or was; nothing if there was none."""
        return next((n.name for n in (*self.nodes, *reversed(self._former)) if n.folder == folder), "")

    # -- beginning ------------------------------------------------------------------------------------------------

    def renew(self) -> list[Node]:
        """Have lost machines again, where they are rented; returns the nodes that may be others now.

        Raises:
            ClusterError: nothing is to be had.
        """
        if not isinstance(self._cluster, Rented):
            return []
        for some in self.seats[:1], self.seats[1:]:  # the first has all of them rented
            nodes = each(self._cluster, self._cluster.renew, [seat.node for seat in some])
            for seat, node in zip(some, nodes, strict=True):
                if isinstance(node, ClusterError):
                    raise node
                seat.node = node
        return self.nodes

    def meet(self, port: int | None) -> None:
        """Have a store for the agents to meet in: see `Stores.start`.

        Raises:
            ClusterError: no node can have it.
        """
        self.stores.start(self.nodes, self._living(), port)

    def move(self, port: int | None) -> bool:
        """Have the agents that live meet elsewhere: their store is gone. False: there are none, or no place for it."""
        if not self._living():
            return False
        self.leave_store()
        try:
            self.meet(port)
        except ClusterError as error:
            self._note(str(error))
            return False
        self.tell()
        return True

    def _living(self) -> set[str]:
        return {name for name, code in self.codes().items() if code is None}

    def leave_store(self) -> None:
        """Do without the store: it is killed, if need be when its node answers again."""
        self.stores.leave()

    def _abandon(self, node: Node, process: Process) -> None:
        self._abandoned.append((node, process))

    def keep_spare_store(self, port: int | None) -> None:
        """Have another store ready: see `Stores.keep_spare`."""
        self.stores.keep_spare(self.nodes, self._living(), port)

    def tell(self) -> None:
        """Tell agents where they meet now, if they do not know: those that live, on nodes that answer."""
        ignorant = [s for s in self.seats if s.agent and s.endpoint != self.stores.endpoint]
        codes = self.codes() if ignorant else {}
        lost = [s.node.name for s in self.seats if codes.get(s.node.name, 0) is not None]
        told = [s for s in ignorant if s.node.name not in lost and not self._cluster.silence_s(s.node)]

        def tell(seat: Seat) -> Process:
            node = seat.node
            argv = engine.endpoint_argv(node.python, folder=node.folder, endpoint=self.stores.endpoint, lost=lost)
            return self._cluster.start(node, Command("endpoint", argv, {}))

        for seat, helper in zip(told, each(self._cluster, tell, told), strict=True):
            if isinstance(helper, ClusterError):
                self._note(str(helper))
                continue
            self._helpers.append(helper)
            seat.endpoint = self.stores.endpoint

    def adopt(self, term: Term) -> bool:
        """Take over what an earlier supervisor has started; False, and nothing changes, if too little of it lives."""
        if not self._cluster.lasting or not term.endpoint or term.world != self._world:
            return False
        now, places = self._clock.now(), still_own(self._cluster, term.places, self._owner)
        own = [node for node in places if node in term.nodes]
        if len(own) < len(term.nodes):
            return False
        agents = find_each(self._cluster, own, "agent")
        seats = [
            Seat(n, a, due=now, endpoint=term.endpoint, probation=0 if n.name in term.probation else None)
            for n, a in zip(own, agents, strict=True)
        ]
        if not any(seat.agent for seat in seats) or not self.stores.adopt(term.endpoint, places):
            return False
        self.seats, self._strays = seats, list(term.gone)
        return True

    # -- agents ---------------------------------------------------------------------------------------------------

    def start_agents(self, seats: Sequence[Seat]) -> list[ClusterError | None]:
        """Start nodes' agents, in place of any that may have been started when a node did not answer.

        Returns, in the order of the seats, why one cannot be started.
        """
        try:
            shares = self._cluster.hardware(self.nodes)
        except ClusterError as error:
            return [error] * len(seats)

        def start(seat: Seat) -> None:
            share = shares[self.seats.index(seat)]
            command = agent_command(self._run, self._url, self._world, seat.node, share, self.stores.endpoint)
            seat.due, seat.agent, seat.endpoint = None, self._start(seat.node, command), self.stores.endpoint

        return each(self._cluster, start, seats)

    def _start(self, node: Node, command: Command) -> Process:
        self._cluster.claim(node, self._owner)  # while nothing of ours ran, another run may have taken it
        if command.name == "agent" and self._cluster.lasting:
            kill_all(self._cluster, node, "agent")
        return self._cluster.start(node, command._replace(env={**command.env, **self.lease}))

    def codes(self) -> dict[str, int | None]:
        """Return the exit status of each agent that was started, None while it runs, by node."""
        agents = [(s.node, s.agent) for s in self.seats if s.agent]
        return dict(zip((node.name for node, _ in agents), self._codes(agents), strict=True))

    def _code(self, node: Node, process: Process) -> int | None:
        return self._codes([(node, process)])[0]

    def _codes(self, programs: Sequence[tuple[Node, Process]]) -> list[int | None]:
        """Return exit statuses; what its node cannot tell of counts as killed, and is started again."""
        found: list[int | None] = []
        polled = each(self._cluster, lambda one: one[1].poll(), programs)
        for (node, _), code in zip(programs, polled, strict=True):
            if isinstance(code, ClusterError):
                self._note(f"{node.name} is taken for lost: {code}")
            found.append(-signal.SIGKILL if isinstance(code, ClusterError) else code)
        return found

    def agent_pids(self) -> dict[str, int]:
        """Return the process IDs of the agents, by node."""
        return {s.node.name: s.agent.pid for s in self.seats if s.agent}

    def meeting(self) -> bool:
        """Tell whether the rendezvous store lives."""
        return self.stores.live()

    def end_agents(self, seats: Sequence[Seat]) -> None:
        """Kill nodes' agents, and what is left of those that have ended."""
        self._end([seat.agent for seat in seats if seat.agent])
        for seat in seats:
            seat.agent = None

    def _end(self, processes: Sequence[Process]) -> None:
        """Kill programs; if a node refuses, that is told, and no reason to leave the others running."""
        self._tell_refused(each(self._cluster, lambda process: process.kill(), processes))

    def _tell_refused(self, said: Sequence[object]) -> None:
        for refusal in said:
            if isinstance(refusal, ClusterError):
                self._note(str(refusal))

    def abandon(self, seat: Seat) -> None:
        """Do without what runs on a node: it is killed, if need be when the node answers again."""
        if seat.agent:
            self._abandoned.append((seat.node, seat.agent))
            seat.agent = None
        if self.stores.place == seat.node and self._cluster.silence_s(seat.node):
            self.leave_store()
        self.tend()

    def tend(self) -> None:
        """Do what could not be done while nodes were silent: tell agents where they meet, kill what was abandoned."""
        self.tell()
        self._end(self._found_again())
        back = [node for node in self._strays if not self._cluster.silence_s(node)]
        self._strays = [node for node in self._strays if node not in back]
        agents, stores = (n for n in back if n not in self.nodes), (n for n in back if n != self.stores.place)
        _kill_left(self._cluster, list(agents), list(stores))

    def _found_again(self) -> list[Process]:
        """Return what was abandoned and can be killed now; it is not remembered any more."""
        back = [one for one in self._abandoned if not self._cluster.silence_s(one[0])]
        self._abandoned = [one for one in self._abandoned if one not in back]
        return [process for _, process in back]

    # -- ending ---------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Ask every agent to stop and wait a little, for those that answer; what is left is killed later."""
        agents = [(s.node, s.agent) for s in self.seats if s.agent]
        self._tell_refused(each(self._cluster, lambda one: one[1].terminate(), agents))
        deadline = self._clock.now() + grace_s
        while self._clock.now() < deadline:
            agents = [a for a, code in zip(agents, self._codes(agents), strict=True) if code is None]
            if all(self._cluster.silence_s(node) for node, _ in agents):  # what comes of it nobody will know in time
                return
            self._clock.sleep(_POLL_S)

    def kill(self, keep: Mapping[str, int] | None = None) -> None:
        """Kill what is left, but for agents of these process IDs: somebody else has adopted them."""
        adopted = keep or {}
        self.end_agents([s for s in self.seats if s.agent and adopted.get(s.node.name) != s.agent.pid])
        helpers, self._helpers = self._helpers, []
        self._end([*helpers, *self._found_again(), *([] if keep else self.stores.drop())])

    def free_memory(self) -> None:
        """Free what the run's snapshots hold in the nodes' memory: it is over, and the store has its own."""

        def free(node: Node) -> Process:
            argv = engine.forget_argv(node.python, run=self._run.name, folder=node.folder, identity=self._run.identity)
            return self._cluster.start(node, Command("forget", argv, {}))

        # A node that is gone has nothing to free. All at once: Ctrl-C waits for this.
        freeing = [
            p for p in each(self._cluster, free, [*self.nodes, *self._former]) if not isinstance(p, ClusterError)
        ]
        each(self._cluster, lambda process: process.wait(_FORGET_TIMEOUT_S), freeing)

    def unhang(self, slots: Mapping[str, Sequence[int]]) -> Iterator[ClusterError]:
        """Have all ranks write their stacks, and kill those of some local ranks; yields what could not be done."""

        def unhang(node: Node) -> Process:
            argv = engine.unhang_argv(node.python, folder=node.folder, kill=slots.get(node.name, ()))
            return self._cluster.start(node, Command("unhang", argv, {}))

        for helper in each(self._cluster, unhang, self.nodes):
            if isinstance(helper, ClusterError):
                yield helper
            else:
                self._helpers.append(helper)


def still_runs(cluster: Cluster, term: Term, owner: Owner) -> bool:
    """Tell whether agents that a supervisor has started go on without it."""
    return cluster.lasting and any(find_each(cluster, still_own(cluster, term.nodes, owner), "agent"))


def clear(cluster: Cluster, owner: Owner, nodes: Sequence[Node]) -> None:
    """Kill what an earlier supervisor has left running on a run's nodes; one that cannot be reached is passed over."""
    if not cluster.lasting:
        return
    own = still_own(cluster, [*meeting_places(cluster, owner.run, []), *nodes], owner)
    _kill_left(cluster, [n for n in own if n in nodes], own)


def _kill_left(cluster: Cluster, agents: Sequence[Node], stores: Sequence[Node]) -> None:
    """Kill the agents, and the rendezvous stores, that run on nodes."""
    for name, places in (("agent", agents), ("rendezvous", stores)):
        each(cluster, partial(kill_all, cluster, name=name), places)


def agent_command(run: RunFile, store_url: str, world: World, node: Node, share: Hardware, endpoint: str) -> Command:
    """Return what to start on a node with its share of the hardware. Pure."""
    argv = engine.agent_argv(
        node.python,
        world=world,
        run=run.name,
        store=store_url,
        folder=node.folder,
        address=node.address,
        endpoint=endpoint,
    )
    env = engine.agent_env(
        threads=max(1, share.cores // world.gpus),
        address=node.address,
        devices=devices_of(world, share),
        bits=run.recipe.determinism == "bits",
        detect_s=world.detect_s,
        preload=engine.preloaded(run.recipe, store_url) if world.engine == "torchrun" else (),
    )
    return Command("agent", argv, env | {"FGLAUNCH_NODE": node.name, "FGLAUNCH_RUN_ID": run.identity})


def deepspeed_commands(
    run: RunFile, store_url: str, world: World, nodes: Sequence[Node], shares: Sequence[Hardware], endpoint: str
) -> list[tuple[str, ...]]:
    """Return the command line by which DeepSpeed's launcher will be run on each of a round's nodes. Pure."""
    return [
        engine.deepspeed_argv(
            node.python,
            run=run.name,
            store=store_url,
            folder=node.folder,
            rank=rank,
            endpoint=endpoint,
            devices=devices_of(world, share),
        )
        for rank, (node, share) in enumerate(zip(nodes, shares, strict=False))
    ]


def seat_count(world: World) -> int:
    """Return on how many nodes agents are started."""
    return world.started


def devices_of(world: World, share: Hardware) -> str | None:
    """Return the devices that a node's processes use, as CUDA_VISIBLE_DEVICES has them; None if there are none."""
    return ",".join(share.gpus[: world.gpus]) or None
