"""Savers, prunings, collections and crashes in any order: nothing that is kept is ever unloadable, garbage goes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fgtrain import manifest as manifests
from fgtrain.collect import collect
from fgtrain.errors import UserError
from fgtrain.housekeeping import HOLD_S, turn
from fgtrain.lineage import abandon_after, only_weights, step_of
from fgtrain.manifest import Manifest, chunk_key
from fgtrain.prune import Policy, prune
from fgtrain.references import references
from fgtrain.runstore import RunStore
from fgtrain.stores.memory import MemoryStore
from fgtrain.verify import Verifier, by_bytes
from tests.testbed.snapshots import WatchedStore, manifest_of

GRACE_S = 100.0
SAVE_S = 60.0  # the longest save ...
COLLECT_S = 30.0  # ... and the longest from a decision to delete to the deletion: together less than the grace period
RUNS = ("a", "b")
CONTENTS = [bytes([65 + i]) * 4 for i in range(3)]  # few, so that garbage is written anew all the time
SAVE, GIVE_UP, WAIT = "save", "give up", "wait"

_names = itertools.count()


class Killed(BaseException):
    """kill -9, as far as a test can."""


class Saver:
    """One run's saver, a request at a time, as `collect` says that savers behave."""

    def __init__(self, runs: RunStore) -> None:
        self.runs = runs
        self.last: Manifest | None = None
        self.inherited: frozenset[str] = frozenset()
        self.step = 0
        self.attempt = 1
        self.under_way: Iterator[None] | None = None
        self.began = 0.0

    def begin(self, contents: list[bytes], now: float) -> None:
        self.step += 1
        self.under_way, self.began = self._save(contents), now

    def _save(self, contents: list[bytes]) -> Iterator[None]:
        known = {*(self.last.chunks() if self.last else ()), *self.inherited}
        digests = {manifests.chunk_digest(c): c for c in contents}
        for digest, data in digests.items():
            if digest not in known:
                self.runs.store.put(chunk_key(digest), data)
                yield
        manifest = manifest_of(self.runs.run, self.step, {d: 4 for d in digests}, attempt=self.attempt)
        self.runs.commit(manifest)
        self.last = manifest

    def advance(self, now: float) -> None:
        if self.under_way is not None and now - self.began >= SAVE_S:
            self.restart()
        elif self.under_way is not None and next(self.under_way, "done") == "done":
            self.under_way = None

    def restart(self) -> None:
        """Crash, and recover from the newest snapshot that verifies."""
        self.under_way = None
        found = [self.runs.manifest(n) for n in self.runs.manifest_names()]
        self.last = found[-1] if found else None
        self.attempt += 1


class Machine(RuleBasedStateMachine):
    """The store has its own clock; housekeeping is interleaved, request by request, with what savers do."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1e6
        self.store = MemoryStore(f"collect-{next(_names)}", clock=lambda: self.time)
        self.savers = {name: Saver(RunStore(self.store, name)) for name in RUNS}
        for name in RUNS:
            self.store.put(f"runs/{name}/run.json", b'{"name": "%s"}' % name.encode())

    # -- savers ---------------------------------------------------------------------------------------------------

    def act(self, run: str, action: str, contents: list[bytes], requests: int) -> None:
        """Let a saver begin, if it is idle, and send so many requests."""
        saver = self.savers[run]
        if action == SAVE:
            if saver.under_way is None:
                saver.begin(contents, self.time)
            for _ in range(requests):
                saver.advance(self.time)
        elif action == GIVE_UP:
            saver.restart()
        elif action == WAIT:
            self.time += 1

    contents = st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=2, unique=True)
    actions = st.tuples(
        st.sampled_from(RUNS), st.sampled_from([SAVE, SAVE, SAVE, GIVE_UP, WAIT]), contents, st.integers(0, 3)
    )

    @rule(what=actions)
    def save(self, what: tuple[str, str, list[bytes], int]) -> None:
        self.act(*what)

    @rule(run=st.sampled_from(RUNS), contents=contents)
    def save_at_once(self, run: str, contents: list[bytes]) -> None:
        self.act(run, SAVE, contents, 0)
        while self.savers[run].under_way is not None:
            self.savers[run].advance(self.time)

    @rule(run=st.sampled_from(RUNS), contents=st.permutations(CONTENTS))
    def leave_old_garbage(self, run: str, contents: list[bytes]) -> None:
        for one in contents[:2]:
            self.save_at_once(run, [one])
        for name in self.savers[run].runs.manifest_names()[:-1]:
            self.store.delete(f"runs/{run}/manifests/{name}")
        self.time += GRACE_S + 1

    @rule(seconds=st.sampled_from([1.0, SAVE_S, GRACE_S, GRACE_S + 1, HOLD_S + 1]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    # -- housekeeping ---------------------------------------------------------------------------------------------

    # How many requests after the start (or after the listing of chunks, where it is most dangerous) to begin, and what
    # happens then, so many actions before each request.
    schedules = st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 2), st.lists(actions, max_size=8))

    @contextlib.contextmanager
    def watched(self, schedule: tuple[bool, int, int, list[Any]], killed_at: int | None) -> Iterator[WatchedStore]:
        """A store on which savers act between the requests of one housekeeper, which may be killed at any of them."""
        numbers = itertools.count()
        after_listing, wait, pace, actions = schedule
        left, starts = list(actions), [] if after_listing else [wait]

        def before(operation: str, key: str) -> None:
            number = next(numbers)
            if killed_at is not None and number >= killed_at:
                raise Killed
            if (operation, key) == ("list", "chunks/"):
                starts.append(number + 1 + wait)
            if starts and number >= starts[0]:
                for what in left[:pace]:
                    self.act(*what)
                del left[:pace]

        with contextlib.suppress(Killed, UserError):  # UserError: someone killed holds the turn
            yield WatchedStore(self.store, before)

    @rule(
        run=st.sampled_from(RUNS),
        keep=st.integers(1, 3),
        every=st.sampled_from([None, 2]),
        schedule=schedules,
        killed_at=st.one_of(st.none(), st.integers(0, 60)),
    )
    def prune(
        self, run: str, keep: int, every: int | None, schedule: tuple[bool, int, int, list[Any]], killed_at: int | None
    ) -> None:
        names = RunStore(self.store, run).manifest_names()
        with self.watched(schedule, killed_at) as store, turn(store, lambda: self.time) as mine:
            prune(mine, RunStore(store, run), Policy(keep, every), GRACE_S, streams=1)
        left = RunStore(self.store, run).manifest_names()
        assert set(sorted({*names, *left})[-keep:]) <= set(left)  # some may have been committed meanwhile
        assert {n for n in names if every and step_of(n) % every == 0} <= set(left) or not every

    @rule(schedule=schedules, killed_at=st.one_of(st.none(), st.integers(0, 60)), age=st.sampled_from([0, GRACE_S + 1]))
    def collect(self, schedule: tuple[bool, int, int, list[Any]], killed_at: int | None, age: float) -> None:
        self.time += age
        with self.watched(schedule, killed_at) as store, turn(store, lambda: self.time) as mine:
            collect(mine, GRACE_S, streams=1)

    @rule(run=st.sampled_from(RUNS), which=st.integers(0, 1), wait=st.integers(0, 3), requests=st.integers(1, 2))
    def collect_while_garbage_is_written_anew(self, run: str, which: int, wait: int, requests: int) -> None:
        self.leave_old_garbage(run, CONTENTS)
        saving = [(run, SAVE, [CONTENTS[which]], requests)]
        self.collect(schedule=(True, wait, 1, saving), killed_at=None, age=0)

    @rule(
        run=st.sampled_from(RUNS), fresh=st.binary(min_size=4, max_size=4), seconds=st.sampled_from([1.0, SAVE_S - 9])
    )
    def collect_twice_during_a_save(self, run: str, fresh: bytes, seconds: float) -> None:
        self.savers[run].restart()
        self.act(run, SAVE, [fresh], 1)
        self.time += seconds
        for _ in range(2):
            self.collect(schedule=(False, 0, 1, []), killed_at=None, age=1)
        self.act(run, SAVE, [fresh], 2)

    @precondition(lambda self: any(s.last for s in self.savers.values()))
    @rule(run=st.sampled_from(RUNS), which=st.integers(0, 9), killed_at=st.one_of(st.none(), st.integers(0, 30)))
    def go_back(self, run: str, which: int, killed_at: int | None) -> None:
        saver = self.savers[run]
        names = saver.runs.manifest_names()
        if not names:
            return
        saver.under_way = None  # `resume` refuses while the run goes on
        step = step_of(names[which % len(names)])
        with self.watched((False, 0, 1, []), killed_at) as store, turn(store, lambda: self.time) as mine:
            abandon_after(mine, RunStore(store, run), step)
        saver.restart()

    @precondition(lambda self: self.savers["a"].last)
    @rule()
    def b_begins_with_weights_of_a(self) -> None:
        a, b = self.savers["a"], self.savers["b"]
        if b.last is None and not b.inherited and a.last is not None:
            b.runs.store.create(b.runs.key("parent"), manifests.encode(only_weights(a.last)))
            b.inherited = frozenset(a.last.chunks())

    # -- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def everything_kept_loads(self) -> None:
        for reference in references(self.store, streams=1):
            verifier = Verifier(RunStore(self.store, "any"), by_bytes, streams=1)
            assert verifier.problem(reference.manifest) is None, reference.key

    def teardown(self) -> None:
        """In the end, with everyone gone, what no manifest refers to is deleted."""
        self.time += HOLD_S + 1
        for _ in range(2):
            self.time += 2 * GRACE_S
            with turn(self.store, lambda: self.time) as mine:
                collect(mine, GRACE_S, streams=1)
        referred = {chunk_key(c) for r in references(self.store) for c in r.manifest.chunks()}
        assert {e.key for e in self.store.list("chunks/")} == referred
        assert not list(self.store.list("trash/"))


TestCollectModel = Machine.TestCase
TestCollectModel.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
