"""One run under a supervisor, on a fake cluster whose clock tests move."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest

from fgtrain.plan import World
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.events import Event
from launcher.money import Terms
from launcher.outcome import Outcome
from launcher.supervision import KEY, Supervision, changed
from launcher.supervisor import Supervisor
from tests.fgtrain.test_runstore import run_file
from tests.testbed.fake_training import FakeClock, FakeCluster, FakeTraining

NUMBERS = itertools.count()
STEPS = 40


class Scene:
    """One run on two of three hosts."""

    def __init__(
        self,
        *settings: str,
        hosts: int = 3,
        lasting: bool = True,
        steps: int = STEPS,
        cluster: Callable[[FakeClock], FakeCluster] | None = None,
        world: World = World(2, 1),  # noqa: B008  (it is frozen)
    ) -> None:
        self.clock = FakeClock()
        self.cluster = cluster(self.clock) if cluster else FakeCluster(self.clock, hosts, lasting=lasting)
        self.runs = RunStore(open_store(f"memory://supervisor-{next(NUMBERS)}"), "run")
        base = run_file()
        self.world = world
        plan = msgspec.structs.replace(base.plan, steps=steps)
        identity = f"{next(NUMBERS):016x}"
        self.run = msgspec.structs.replace(base, plan=plan, created=self.clock.time(), id=identity)
        self.runs.create("run.json", self.run)
        self.runs.write(KEY, changed(Supervision(), settings))
        self.training = FakeTraining(self.cluster, self.runs, self.world, steps)
        self.notes: list[str] = []
        self.terms: Terms | None = None

    def supervisor(self) -> Supervisor:
        parts = (self.run, self.runs, "lab", self.cluster, self.world, self._show, None, self.clock)
        return Supervisor(*parts, terms=self.terms)

    def supervise(self) -> Outcome:
        return self.supervisor().supervise()

    def at(self, seconds: float, then: Callable[[], None]) -> None:
        due, done = self.clock.now() + seconds, []

        def look() -> None:
            if self.clock.now() >= due and not done:
                done.append(True)
                then()

        self.clock.watchers.append(look)

    def _show(self, event: Event) -> None:
        if event["event"] == "note":
            self.notes.append(event["text"])

    def noted(self, words: str) -> bool:
        return any(words in note for note in self.notes)


def once(fault: Callable[[FakeTraining], None]) -> Callable[[FakeTraining], None]:
    met: list[bool] = []

    def first_time(training: FakeTraining) -> None:
        if not met:
            met.append(True)
            fault(training)

    return first_time


def gaps(scene: Scene) -> list[float]:
    times = [t for t, _ in scene.training.began]
    return [b - a for a, b in itertools.pairwise(times)]


def cut(scene: Scene, host: str) -> Callable[[FakeTraining], None]:
    """Return a fault: a host's network is cut, all that runs there goes on alone."""

    def fault(training: FakeTraining) -> None:
        scene.cluster.quiet.add(host)
        training.out |= {p.pid for p in scene.cluster.running("agent") if p.node.name == host}

    return once(fault)


class Killed(BaseException):
    """kill -9 of the supervisor, as far as a process can do it to itself: nothing is tidied up."""


def killed_at(scene: Scene, seconds: float) -> None:
    """Supervise until kill -9, `seconds` from now."""

    def die() -> None:
        scene.cluster.cut_off = True
        raise Killed

    scene.at(seconds, die)
    with pytest.raises(Killed):
        scene.supervise()
    scene.cluster.cut_off = False
