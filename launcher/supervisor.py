"""Supervising one run: keep its agents going, decide on what goes wrong, end honestly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from cluster import CalledOff, Cluster, ClusterError, Rented, Unreachable
from fgtrain.errors import StoreError
from fgtrain.plan import World
from fgtrain.runstore import Attempt, Failure, RunFile, RunStore
from launcher import replacing
from launcher.abreast import each
from launcher.buying import ASK_AGAIN_S
from launcher.clock import Clock, SystemClock
from launcher.clusters import lease_on, terms_of
from launcher.events import Event
from launcher.failures import EXIT_NOTICED, Kind, Sign, sign_of_end
from launcher.feed import Feed
from launcher.fleet import Fleet, Seat, clear
from launcher.guard import Guard
from launcher.incidents import Decision, Incidents
from launcher.interrupts import Interrupts
from launcher.joining import Joining
from launcher.limits import Meter
from launcher.listening import Listener
from launcher.money import Terms, prices_of
from launcher.news import News
from launcher.outcome import EXIT_INTERRUPTED, EXIT_LIMIT, Outcome, is_done, of_work
from launcher.ownership import owner_of
from launcher.post import Post, patience
from launcher.renting import Renter, Waits
from launcher.status import read_status
from launcher.supervision import Supervision, recorded
from launcher.takeover import Term, last_term, take_office

_POLL_S = 0.1
_SLOW_POLL_S = 1.0  # for the store, agents' logs and pulses
_GRACE_S = 3.0  # from asking agents to stop to killing them: Ctrl-C is over within 5 s
"""How long workers have to take a last snapshot when the user interrupts a run."""
_LAST_SNAPSHOT_S = 30.0
"""... when nobody waits at the terminal: a limit is reached, or the run is stopped from elsewhere."""


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
        clock: Clock | None = None,
        grace_s: float = _GRACE_S,
        terms: Terms | None = None,
    ) -> None:
        """Start nothing yet. `terms`: the cluster's, where this machine has no `clusters.toml` to look them up in."""
        self._run, self._runs, self._cluster, self._world, self._show = run, runs, cluster, world, show
        self._port, self._cluster_name, self._grace_s = port, cluster_name, grace_s
        self._last_s = max(grace_s, _LAST_SNAPSHOT_S)
        self._clock = clock or SystemClock()
        self._settings: Supervision = recorded(runs)
        self._site = replacing.Site(
            *(cluster, cluster_name, owner_of(run, runs.store.url), runs, world, self._settings.check, self._clock),
            interrupted=lambda: self._interrupts.received,
            note=self._note,
        )
        terms = terms or terms_of(cluster_name)
        self._lease = partial(lease_on, terms, cluster, runs.store.url, run.name)
        self._fleet = Fleet(run, runs.store.url, cluster, world, self._clock, self._note)
        self._feed = Feed(cluster)
        self._places = replacing.Places(self._site, self._fleet, self._feed, self._settings.node_tries)
        self._news = News(runs)
        self._incidents = Incidents(self._settings, run.name, world.engine)
        self._guard = Guard(self._settings, cluster, self._fleet, self._feed, world, self._clock, self._note)
        self._joining = Joining(self._site, self._fleet, self._feed, self._incidents, self._guard)
        self._listener = Listener(self._fleet, self._feed, self._incidents, self._guard, self._clock, show)
        prices = None if isinstance(cluster, Rented) else prices_of(terms, cluster)  # else by what is taken
        self._meter = Meter(runs, prices, run.plan.steps, self._note, self._clock.time)
        self._renter = Renter(cluster, run, self._meter, terms, self._clock, self._note)
        self._post: Post | None = None
        self._fenced = False
        self._interrupts = Interrupts(self._renter.call_off)
        self._waiting = False
        self._next_slow = 0.0

    def supervise(self) -> Outcome:
        """Run to the end. Nothing that was started is left running, unless another supervisor has taken it over."""
        with self._interrupts:
            try:
                outcome = self._settle(self._begin() or self._watch())
                if not self._fenced:
                    patient = outcome.state == "stopped" and outcome.exit_code != EXIT_INTERRUPTED
                    self._fleet.stop(self._last_s if patient else self._grace_s)
                    self._listener.pass_on_events()
            finally:
                self._end()
                if self._post:
                    self._post.rest()
        if not self._fenced and self._post:
            with patience(self._note):  # the outcome is what the user wants to hear of
                self._post.write(outcome, self._listener.step, self._fleet.nodes)
        return outcome

    # -- beginning and ending -------------------------------------------------------------------------------------

    def _begin(self) -> Outcome | None:
        """Take the office, and what an earlier supervisor has left on a lasting cluster; else start everything."""
        earlier = last_term(self._runs, self._cluster_name)
        office = take_office(self._runs, self._cluster_name, self._world)
        self._fleet.lease = self._lease(office.term.number)
        self._post = Post(self._runs, office, self._cluster_name, self._run.plan.steps, self._clock)
        self._listener.step = max(0, self._runs.newest_step())  # where the run goes on
        if earlier and self._fleet.adopt(earlier):
            self._post.inherit(earlier)
            self._take_over(earlier)
            return None
        status = read_status(self._runs)
        if status and status.state == "running" and is_done(self._runs):
            if earlier:  # but the store that they met in goes on, and memory is held
                clear(self._cluster, self._site.owner, earlier.places)
                self._fleet.seats = [Seat(node) for node in earlier.nodes]
            return self._verdict()  # the workers did not need a supervisor to the end
        for leftover in ("stop", "result.json"):  # what an earlier supervision left must not be taken for this one's
            self._runs.store.delete(self._runs.key(leftover))
        if earlier:
            clear(self._cluster, self._site.owner, earlier.places)
        self._beat()  # first: from now on, what others have started keeps out of it
        self._news.skip("attempts", "errors")
        try:
            return self._start()
        except CalledOff:
            return None  # whoever called it off has said why
        except ClusterError as error:
            return Outcome("failed", 1, f"capacity: {error}")

    def _take_over(self, earlier: Term) -> None:
        self._note(f"taking over from supervisor {earlier.number} on {earlier.host}: its agents go on")
        status = read_status(self._runs)
        self._listener.step = max(self._listener.step, status.step if status else 0)
        for attempt in self._news.read("attempts", Attempt):
            self._incidents.attempt(attempt.attempt, attempt.step)
        self._news.skip("errors")
        each(self._cluster, self._feed.skip, self._fleet.nodes)
        self._renter.count()
        self._record()
        self._beat()

    def _start(self) -> Outcome | None:
        """Choose nodes, check them, and have their agents started.

        Raises:
            ClusterError: there are not enough that can be used.
        """
        fleet = self._fleet
        nodes = self._renter.rent(self._listener.step, lambda: replacing.choose(self._site), may_wait=False)
        fleet.seats = [Seat(node) for node in nodes]
        fleet.renew()
        clear(self._cluster, self._site.owner, fleet.nodes)
        self._beat()  # with the nodes' folders, for those who watch
        fleet.meet(self._port)
        replacing.settle(self._site, fleet.seats, fleet.stores.endpoint)
        each(self._cluster, self._feed.skip, fleet.nodes)
        for seat in fleet.seats:
            seat.due = self._clock.now()
        return None

    def _end(self) -> None:
        """Leave nothing behind; what another supervisor has adopted is its own."""
        self._joining.stop()
        if not self._fenced:
            self._fleet.kill()
            self._fleet.free_memory()
            return
        adopted = None
        if self._cluster.lasting and self._post:
            adopted = self._post.adopted(self._fleet.agent_pids())
        self._fleet.kill(keep=adopted)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _watch(self) -> Outcome:
        while True:
            self._listener.pass_on_events()
            outcome = self._look() or self._look_at_agents() or self._decide()
            if outcome:
                return outcome
            self._start_due()
            self._clock.sleep(_POLL_S)

    def _look(self) -> Outcome | None:
        """Look at what changes slowly: requests, the store, logs, pulses; write the heartbeat."""
        if self._interrupts.received:
            return Outcome("stopped", EXIT_INTERRUPTED, "interrupted")
        now = self._clock.now()
        if now < self._next_slow:
            return None
        self._next_slow = now + _SLOW_POLL_S
        self._listener.read_logs(now)
        if hang := self._guard.look():
            self._incidents.add(now, hang)
        self._give_up_silent(now)
        try:
            return self._look_at_store(now)
        except StoreError as error:
            self._note(f"the store does not answer: {error}")
            return None

    def _look_at_store(self, now: float) -> Outcome | None:
        if self._post and self._post.due() and not self._beat():
            return self._give_way()
        if self._runs.exists("stop"):
            return Outcome("stopped", 0, "stopped on request")
        self._renter.look(self._incidents.newest, self._listener.step, waits=self._fleet.waits(now))
        if limit := self._meter.tick(len(self._fleet.seats), self._listener.step):
            return Outcome("stopped", EXIT_LIMIT, limit)
        for attempt in self._news.read("attempts", Attempt):
            self._incidents.attempt(attempt.attempt, attempt.step)
        for failure in self._news.read("errors", Failure):
            self._listener.hear(failure)
        self._joining.look(now)
        return None

    def _settle(self, outcome: Outcome) -> Outcome:
        """Judge a failure again: another supervisor may go on with the run, or have come to its end beside this one."""
        if outcome.state != "failed":
            return outcome
        with suppress(StoreError):
            if self._post and self._post.successor():
                return self._give_way()
            if is_done(self._runs) and (verdict := self._verdict()).state == "finished":
                return verdict
        return outcome

    def _give_way(self) -> Outcome:
        assert self._post is not None
        self._fenced = True
        return self._post.fenced()

    def _look_at_agents(self) -> Outcome | None:
        codes = self._fleet.codes()
        if codes and len(codes) == len(self._fleet.seats) and all(code == 0 for code in codes.values()):
            return self._verdict()
        dead = {name: code for name, code in codes.items() if code not in (None, 0)}
        if (dead or any(code == 0 for code in codes.values())) and is_done(self._runs):
            return self._verdict()  # what died did so after the work was done
        lost_store = bool(codes) and not self._fleet.meeting()
        if lost_store and not self._fleet.move(self._port):
            self._restart_all("the rendezvous store died: all agents start again")
            return None
        self._lose(dead)
        if lost_store:
            assert self._fleet.stores.place is not None
            why = f"the rendezvous store is lost: agents meet again on {self._fleet.stores.place.name}"
            self._incidents.add(self._clock.now(), Sign("lost", why, self._clock.time()))
            self._record()
        return None

    def _restart_all(self, why: str) -> None:
        at_once = not self._incidents.open_nodes
        self._incidents.add(self._clock.now(), Sign("lost", why, self._clock.time()))
        self._fleet.stop(self._grace_s)
        self._fleet.kill()
        for seat in self._fleet.seats:
            seat.due = self._clock.now() if at_once else None

    def _lose(self, dead: Mapping[str, int | None]) -> None:
        """Agents died: they are started again at once, but for one that dies again before that was decided on."""
        seats = [s for s in self._fleet.seats if s.node.name in dead]
        tails = self._feed.agent_tails([s.node for s in seats])
        self._fleet.end_agents(seats)
        for seat, tail in zip(seats, tails, strict=True):
            self._lose_one(seat, dead[seat.node.name], tail)

    def _lose_one(self, seat: Seat, code: int | None, tail: str) -> None:
        name, seat.failures = seat.node.name, seat.failures + 1
        undecided = name in self._incidents.open_nodes or seat.probation is not None
        seat.due = None if undecided else self._clock.now()
        if code == EXIT_NOTICED:  # the machine goes: better another one, if there is one
            seat.failures = self._settings.node_tries
            self._places.replace_failing(seat)
        sign = sign_of_end(name, code, self._clock.time(), tail)
        self._incidents.gone(self._clock.now(), sign, again=undecided or code != EXIT_NOTICED)

    def _give_up_silent(self, now: float) -> None:
        """What is silent for good is started anew, on another node unless its own answers; the others go on."""
        self._fleet.tend()
        if self._fleet.stores.place and self._guard.stranded(self._fleet.stores.place):
            self._fleet.leave_store()
        if self._incidents.newest:  # before that, all are busy importing
            self._fleet.keep_spare_store(self._port)
        for node, silent_s in self._guard.lost():
            seat = self._fleet.seat(node.name)
            if seat is None or not self._places.give_up(seat):
                continue
            self._guard.forget(node)
            why = f"{node.name} was silent for {silent_s:.0f} s, and is given up"
            seat.due = now
            self._incidents.gone(now, Sign("lost", why, self._clock.time(), node=node.name), again=True)

    def _start_due(self) -> None:
        """Start the agents whose time has come."""
        now = self._clock.now()
        due = [s for s in self._fleet.seats if s.agent is None and s.due is not None and s.due <= now]
        if not due:
            return
        try:
            others = [] if self._fleet.meeting() else self._renter.rent(self._listener.step, self._fleet.renew)
            each(self._cluster, self._feed.skip, others)
        except ClusterError as error:
            self._wait_for_machines(due, error)
            return
        try:
            if not self._fleet.meeting():
                self._fleet.meet(self._port)
        except ClusterError as error:
            self._cannot_start(due[0], error)
            return
        self._waiting = False
        self._record()  # before: were this process killed meanwhile, the next must know where to look
        for seat, refusal in zip(due, self._fleet.start_agents(due), strict=True):
            if refusal:
                self._cannot_start(seat, refusal)
            else:
                self._guard.begins(seat.node)
        self._record()

    def _wait_for_machines(self, due: list[Seat], error: ClusterError) -> None:
        """Ask again later: by the budget of such incidents, or as long as the deadline allows."""
        now, waits = self._clock.now(), isinstance(error, Waits)
        for seat in due:
            seat.due = now + ASK_AGAIN_S if waits else None
        if not waits:
            self._incidents.add(now, Sign("capacity", str(error), self._clock.time()))
        elif not self._waiting:
            self._note(str(error))
        self._waiting = waits

    def _cannot_start(self, seat: Seat, error: ClusterError) -> None:
        seat.due, seat.failures = None, seat.failures + 1
        kind: Kind = "capacity" if isinstance(error, Unreachable) else "lost"  # it may come back, some time
        self._incidents.add(self._clock.now(), Sign(kind, str(error), self._clock.time(), node=seat.node.name))

    # -- deciding -------------------------------------------------------------------------------------------------

    def _decide(self) -> Outcome | None:
        decision = self._incidents.decide(self._clock.now(), *self._joining.uncounted())
        if decision is None:
            return None
        if decision.blamed:
            self._joining.dismiss(decision.cause, decision.blamed, self._clock.now())
        elif decision.cause.kind == "hardware":
            self._places.exclude(decision.cause, for_good=bool(decision.verdict))
        if decision.verdict and not is_done(self._runs):
            return Outcome("failed", *decision.verdict)
        if not decision.blamed:
            self._note(decision.note)
        self._retry(decision)
        self._record()  # the next one is to know who has no seat any more
        return None

    def _retry(self, decision: Decision) -> None:
        """Let what is down start after the delay; what runs is stopped first, unless one died or lost its seat."""
        delay, cause = decision.retry.delay_s, decision.cause
        seat = self._fleet.seat(cause.node)
        died = cause.kind in ("lost", "capacity") and seat is not None and seat.agent is None
        if delay and not (died or (cause.node and seat is None)):
            self._fleet.stop(self._grace_s)
            self._fleet.kill()
        for down in self._fleet.seats:
            if down.agent is None and not (decision.blamed and down.due is not None):
                self._places.replace_failing(down)
                down.due = self._clock.now() + delay

    def _verdict(self) -> Outcome:
        outcome = of_work(self._run, self._runs)
        if outcome.state == "finished":
            self._listener.step = self._run.plan.steps
        return outcome

    # -- telling --------------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self._show({"event": "note", "text": text})

    def _record(self) -> None:
        """Note what runs, for a supervisor that goes on after this one."""
        with patience(self._note):
            if self._post:
                self._post.record(self._fleet)

    def _beat(self) -> bool:
        assert self._post is not None
        return self._post.beat(self._listener.step, self._fleet.nodes)
