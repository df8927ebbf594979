"""The supervisor on a fake cluster whose clock tests move: back-off, refill, replacement, hangs, take-over, fencing."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cluster import Command
from fgtrain.notice import LEAVES
from fgtrain.plan import World
from fgtrain.runstore import Failure, RunStore
from fgtrain.stores import open_store
from launcher import exclusions
from launcher.events import Event
from launcher.money import Terms
from launcher.outcome import EXIT_FENCED, Outcome
from launcher.status import live_state, read_status
from launcher.supervision import KEY, Supervision, changed
from launcher.supervisor import Supervisor
from launcher.takeover import last_term, take_office
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
    ) -> None:
        self.clock = FakeClock()
        self.cluster = cluster(self.clock) if cluster else FakeCluster(self.clock, hosts, lasting=lasting)
        self.runs = RunStore(open_store(f"memory://supervisor-{next(NUMBERS)}"), "run")
        base = run_file()
        self.world = World(2, 1)
        plan = msgspec.structs.replace(base.plan, steps=steps)
        self.run = msgspec.structs.replace(base, plan=plan, created=self.clock.time())
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


class Killed(BaseException):
    """kill -9 of the supervisor, as far as a process can do it to itself: nothing is tidied up."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def gaps(scene: Scene) -> list[float]:
    times = [t for t, _ in scene.training.began]
    return [b - a for a, b in itertools.pairwise(times)]


def test_run_without_trouble_finishes_and_leaves_nothing() -> None:
    scene = Scene()
    assert scene.supervise() == Outcome("finished", 0)
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    assert live_state(read_status(scene.runs)) == "finished"
    assert [p.node.name for p in scene.cluster.started("agent")] == ["host0", "host1"]


def test_only_the_agent_that_died_is_started_again() -> None:
    scene = Scene()
    scene.training.faults[7] = lambda t: t.lose(1) if t.attempt == 1 else None
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert len(scene.cluster.started("agent", "host1")) == 2
    assert scene.training.began[1][1] == 5


def trouble(scene: Scene, host: str, *, ends: bool) -> None:
    """From now on a host answers, and cannot tell of its agent, nor kill it."""
    for process in scene.cluster.running("agent"):
        if process.node.name == host:
            process.trouble = "[Errno 116] Stale file handle"
            if ends:
                process.end(-signal.SIGKILL)


def test_agent_that_its_node_cannot_tell_of_is_lost_and_started_again() -> None:
    scene = Scene()
    scene.training.faults[7] = lambda t: trouble(scene, "host1", ends=True) if t.attempt == 1 else None
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert len(scene.cluster.started("agent", "host1")) == 2
    assert scene.noted("host1 is taken for lost: host1: [Errno 116] Stale file handle")


def test_node_that_cannot_kill_does_not_keep_the_others_running() -> None:
    scene = Scene()

    def stop(training: FakeTraining) -> None:
        trouble(scene, "host0", ends=False)
        scene.runs.create("stop", {})

    scene.training.faults[7] = stop
    assert scene.supervise().state == "stopped"
    assert [p.node.name for p in scene.cluster.running("agent")] == ["host0"]
    assert not scene.cluster.running("rendezvous")
    assert scene.noted("host0: [Errno 116] Stale file handle")


def test_poison_step_ends_the_run_with_its_traceback() -> None:
    scene = Scene()
    met: list[int] = []
    scene.training.faults[8] = lambda t: (met.append(t.attempt), t.fail("ValueError: label 7"))[1]
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "failed twice at the same place: ValueError: label 7" in outcome.message
    assert outcome.traceback == "Traceback of ValueError: label 7"
    assert met == [1, 2]


def test_users_mistake_ends_the_run_at_once_with_2() -> None:
    scene = Scene()
    scene.training.faults[3] = lambda t: t.fail("no such folder", kind="user")
    assert scene.supervise() == Outcome("failed", 2, "no such folder")
    assert len(scene.training.began) == 1


def test_delays_grow_until_the_budget_is_spent() -> None:
    scene = Scene("lost.tries=6", "lost.free=2", "lost.base_s=8", "lost.cap_s=1000")
    scene.training.commits = False
    scene.training.faults[2] = lambda t: t.die(-signal.SIGKILL, 1)
    outcome = scene.supervise()
    assert outcome.state == "failed"
    assert "lost, 7 times without progress past step 0" in outcome.message
    waits = [float(found[1]) if (found := re.search(r", in ([\d.]+) s", n)) else 0.0 for n in scene.notes]
    assert waits[:2] == [0.0, 0.0]
    assert len(waits) == 6
    for number, wait in enumerate(waits[2:]):
        assert 8 * 2**number / 2 <= wait <= 8 * 2**number
    kept_down = [gap for gap in gaps(scene) if gap > 7]
    assert len(kept_down) == 4
    assert all(gap >= wait for gap, wait in zip(kept_down, waits[2:], strict=True))


def test_progress_refills_the_budget() -> None:
    scene = Scene("lost.tries=1")
    for step in (6, 12, 18, 24, 33):
        scene.training.faults[step] = lambda t: t.die(-signal.SIGKILL)
    scene.training.faults = {s: once(f) for s, f in scene.training.faults.items()}
    assert scene.supervise().state == "finished"
    assert [step for _, step in scene.training.began] == [0, 5, 10, 15, 20, 30]


def once(fault: Callable[[FakeTraining], None]) -> Callable[[FakeTraining], None]:
    met: list[bool] = []

    def first_time(training: FakeTraining) -> None:
        if not met:
            met.append(True)
            fault(training)

    return first_time


def test_errors_that_differ_are_tried_as_often_as_their_budget_says() -> None:
    scene = Scene("error.tries=3")
    numbers = itertools.count()
    scene.training.commits = False
    scene.training.faults[2] = lambda t: t.fail(f"RuntimeError: {next(numbers)}")
    outcome = scene.supervise()
    assert "error, 4 times" in outcome.message
    assert outcome.traceback == "Traceback of RuntimeError: 3"


def test_node_with_broken_hardware_is_replaced_and_stays_excluded() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=1))
    assert scene.supervise().state == "finished"
    assert scene.training.began[1][1] == 5
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host0", "host1", "host2"}
    [kept] = exclusions.of_user("lab")
    assert (kept.node, kept.run) == ("host1", "run")
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host1"]
    other = Scene()
    assert other.supervise().state == "finished"
    assert {p.node.name for p in other.cluster.started("agent")} == {"host0", "host2"}


def test_broken_node_without_another_is_excluded_when_the_run_is_given_up() -> None:
    scene = Scene("hardware.tries=2", hosts=2)
    numbers = itertools.count()
    scene.training.faults[7] = lambda t: t.fail(f"RuntimeError: Xid {next(numbers)}", rank=1)
    scene.training.commits = False
    outcome = scene.supervise()
    assert "given up (hardware, 3 times without progress past step 0)" in outcome.message
    assert [e.node for e in exclusions.of_user("lab")] == ["host1"]
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host0", "host1"}


def test_node_that_fails_its_check_is_never_started_on() -> None:
    scene = Scene()
    scene.cluster.reports["host0"] = {"writable": False}
    assert scene.supervise().state == "finished"
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host1", "host2"}
    assert scene.noted("host0 is not used any more: its working folder cannot be written")


def test_run_whose_nodes_all_fail_their_check_does_not_start() -> None:
    scene = Scene(hosts=2)
    scene.cluster.reports["host1"] = {"disk_free": 0}
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "host1 failed its check: its disk has 0.00 GiB free" in outcome.message
    assert scene.cluster.started("agent") == scene.cluster.running("rendezvous") == []


def test_check_can_be_left_out() -> None:
    scene = Scene("check.level=off")
    scene.cluster.reports["host0"] = {"writable": False}
    assert scene.supervise().state == "finished"
    assert scene.cluster.started("check") == []


def test_node_that_cannot_be_reached_any_more_gives_its_place_to_another() -> None:
    scene = Scene()

    def gone(training: FakeTraining) -> None:
        scene.cluster.down.add("host1")
        training.lose(1)

    scene.training.faults[7] = once(gone)
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert list(exclusions.of_user()) == []  # a node that is away may come back


def test_agent_that_nobody_knew_to_have_started_is_killed_before_another_starts() -> None:
    scene = Scene()
    strays = []

    def half_started(training: FakeTraining) -> None:
        training.lose(1)
        node = scene.cluster.nodes("run", 2)[1]
        strays.append(scene.cluster.start(node, Command("agent", ("python",), {})))

    scene.training.faults[7] = once(half_started)
    assert scene.supervise().state == "finished"
    assert [stray.code for stray in strays] == [-signal.SIGKILL]


def test_silence_of_a_node_is_told_and_is_no_death() -> None:
    scene = Scene()
    scene.at(5.0, lambda: scene.cluster.quiet.add("host1"))
    scene.at(15.0, lambda: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert scene.noted("host1 does not answer: waiting for it")
    assert scene.noted("host1 answers again")
    assert len(scene.cluster.started("agent")) == 2


def cut(scene: Scene, host: str) -> Callable[[FakeTraining], None]:
    """Return a fault: a host's network is cut, all that runs there goes on alone."""

    def fault(training: FakeTraining) -> None:
        scene.cluster.quiet.add(host)
        training.out |= {p.pid for p in scene.cluster.running("agent") if p.node.name == host}

    return once(fault)


def test_node_that_is_cut_off_for_good_gives_its_place_to_another() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = cut(scene, "host1")
    scene.training.faults[20] = once(lambda t: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert scene.noted("lost: host1 was silent for 30 s, and is given up")
    old, new = scene.cluster.started("agent", "host1")[0], scene.cluster.started("agent", "host2")[0]
    assert new.started - scene.training.began[0][0] > 30
    assert len(scene.cluster.started("agent", "host0")) == 1, "who stays is left alone"
    assert old.code == -signal.SIGKILL, "what was given up is killed when its node answers again"
    assert list(exclusions.of_user()) == []


def test_node_that_is_cut_off_is_waited_for_when_there_is_no_other() -> None:
    scene = Scene("silent_s=30", hosts=2)
    scene.training.faults[7] = cut(scene, "host1")

    def heal() -> None:
        scene.cluster.quiet.clear()
        scene.training.out.clear()
        back = scene.cluster.running("agent")[1].node
        scene.cluster.append(back, "agent.log", "02:12:00 agent 7: round 1: node rank 1 of 2\n")

    scene.at(2000.0, heal)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert not scene.noted("hang"), "who waits does not hang"


def test_agent_that_is_silent_for_good_on_a_node_that_answers_is_started_anew() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = once(lambda t: t.out.add(scene.cluster.running("agent")[1].pid))
    assert scene.supervise().state == "finished"
    assert [p.code for p in scene.cluster.started("agent", "host1")] == [-signal.SIGKILL, 0]
    assert scene.cluster.started("agent", "host2") == []


def test_run_that_waits_for_room_does_not_hang() -> None:
    scene = Scene("capacity.base_s=200", "capacity.cap_s=200")
    scene.training.faults[7] = once(lambda t: t.fail("OSError: [Errno 28] No space left on device"))
    assert scene.supervise().state == "finished"
    assert max(gaps(scene)) > 100
    assert not scene.noted("hang")


def test_agents_meet_anew_when_the_node_that_they_met_on_is_given_up() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = cut(scene, "host0")
    scene.training.faults[20] = once(lambda t: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert met_at(scene, "host1", "host2") == {"host1"}
    assert len(scene.cluster.started("agent", "host1")) == 1, "it is told, and goes on"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []


@pytest.mark.parametrize("said", ["cut off: no answer from the store that agents meet in for 3.1 s", ""])
def test_store_on_a_node_that_nobody_reaches_is_started_elsewhere_at_once(said: str) -> None:
    scene = Scene("silent_s=500", hosts=2)

    def away(training: FakeTraining) -> None:
        cut(scene, "host0")(training)
        other = scene.cluster.running("agent")[1]
        if said:
            scene.cluster.append(other.node, "agent.log", f"02:08:48 agent 7: {said}\n")
        scene.at(60.0, scene.cluster.quiet.clear)
        scene.at(61.0, training.out.clear)

    scene.training.faults[7] = once(away)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert met_at(scene) == ({"host1"} if said else {"host0"})
    told = scene.cluster.started("endpoint")
    assert [p.node.name for p in told] == (["host1", "host0"] if said else []), "one of them when it answers again"
    assert not said or told[0].started - scene.training.began[0][0] < 20


def test_node_that_is_silent_to_the_supervisor_alone_is_not_given_up() -> None:
    scene = Scene("silent_s=10")
    scene.at(10.0, lambda: scene.cluster.quiet.add("host1"))
    scene.at(40.0, lambda: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert len(scene.training.began) == 1


def test_node_that_leaves_after_a_notice_gives_its_place_to_another() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: scene.cluster.running("agent")[1].end(75))
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert scene.noted("preemption: host1 left after a notice")
    assert len(scene.cluster.started("agent", "host0")) == 1


def test_of_nodes_whose_workers_left_together_the_one_that_goes_is_named() -> None:
    scene = Scene()

    def told(training: FakeTraining) -> None:
        staying, going = scene.cluster.running("agent")
        training.die(75)
        scene.cluster.append(going.node, "agent.log", f"02:08:48 agent 7: {LEAVES}\n")
        scene.at(10.0, lambda: going.end(75))  # its last lines take long to ship

    scene.training.faults[7] = once(told)
    assert scene.supervise().state == "finished"
    assert [n for n in scene.notes if "preemption" in n] == ["preemption: host1 left after a notice; try 1 of 1000"]
    assert scene.noted("host2 takes the place of host1")


def test_node_that_comes_back_is_waited_for_when_there_is_no_other() -> None:
    scene = Scene(hosts=2)

    def gone(training: FakeTraining) -> None:
        scene.cluster.down.add("host1")
        training.lose(1)
        scene.at(30.0, lambda: scene.cluster.down.clear())

    scene.training.faults[7] = once(gone)
    assert scene.supervise().state == "finished"


def met_at(scene: Scene, *hosts: str) -> set[str]:
    """Return where the agents met that were started last on each host, or on some."""
    newest = {p.node.name: p.endpoint for p in scene.cluster.started("agent") if p.node.name in hosts or not hosts}
    return {e.removeprefix("--rdzv-endpoint=").rpartition(":")[0] for e in newest.values()}


def test_another_store_is_ready_once_training_goes_on_and_takes_over_at_once() -> None:
    scene = Scene()
    ready: list[list[str]] = []

    def lose(training: FakeTraining) -> None:
        ready.append([p.node.name for p in scene.cluster.running("rendezvous")])
        training.lose_store()

    scene.training.faults[7] = once(lose)
    scene.training.faults[20] = once(lambda t: ready.append([p.node.name for p in scene.cluster.running("rendezvous")]))
    assert scene.supervise().state == "finished"
    assert ready == [["host0", "host1"], ["host1", "host0"]], "and then there is another again"
    assert scene.cluster.running("rendezvous") == []


@pytest.mark.parametrize("lasting", [True, False])
def test_store_that_is_ready_is_on_a_node_that_lives(lasting: bool) -> None:
    scene = Scene(hosts=3, lasting=lasting)
    scene.training.faults[7] = once(lambda t: scene.cluster.running("rendezvous")[-1].end(-signal.SIGKILL))
    assert scene.supervise().state == "finished"
    stores = [p.node.name for p in scene.cluster.started("rendezvous")]
    assert stores == (["host0", "host1", "host1"] if lasting else ["host0", "host1"])


def test_agents_of_a_dead_rendezvous_are_told_of_another() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: t.lose_store())
    assert scene.supervise().state == "finished"
    assert met_at(scene) == {"host1"}
    assert len(scene.cluster.started("agent")) == 2
    assert scene.noted("lost: the rendezvous store is lost: agents meet again on host1")


def test_loss_of_the_first_node_leaves_the_agents_of_the_others_alone() -> None:
    scene = Scene()

    def lose(training: FakeTraining) -> None:
        training.lose_store()
        training.lose(0)

    scene.training.faults[7] = once(lose)
    assert scene.supervise().state == "finished"
    assert met_at(scene) == {"host1"}
    assert len(scene.cluster.started("agent", "host0")) == 2
    assert len(scene.cluster.started("agent", "host1")) == 1
    [told] = scene.cluster.started("endpoint")
    assert told.node.name == "host1"
    assert told.command.argv[5:] == ("host0",), "it need not wait for who is known to be gone"
    assert len([n for n in scene.notes if n.startswith("lost: ")]) == 1, "it is one incident"


def test_dead_rendezvous_without_another_place_makes_all_begin_anew() -> None:
    scene = Scene(hosts=2)

    def lose(training: FakeTraining) -> None:
        training.lose_store()
        for spare in scene.cluster.running("rendezvous"):
            spare.end(-signal.SIGKILL)
        scene.cluster.down |= {"host0", "host1"}
        scene.at(20.0, scene.cluster.down.clear)

    scene.training.faults[7] = once(lose)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 4


def test_frozen_rank_is_noticed_named_and_killed() -> None:
    scene = Scene()

    def kill_the_frozen() -> None:  # what fgtrain.unhang does on a node
        for process in scene.cluster.started("unhang"):
            if "--kill" in process.command.argv and scene.training.frozen:
                scene.training.frozen = set()
                scene.training.die(-signal.SIGKILL, 1)

    scene.training.faults[12] = once(lambda t: t.frozen.add(1))
    scene.clock.watchers.append(kill_the_frozen)
    assert scene.supervise().state == "finished"
    assert scene.noted("rank 1 on host1 hangs (step 12, exchange)")
    assert scene.noted("hang: rank 1 on host1 hangs")
    asked = {p.node.name: p.command.argv[4:] for p in scene.cluster.started("unhang")}
    assert asked == {"host0": (), "host1": ("--kill", "0")}


def test_stop_request_is_obeyed_and_those_before_it_are_not() -> None:
    scene = Scene()
    scene.runs.write("stop", {"asked": 0})
    scene.at(15.0, lambda: scene.runs.write("stop", {"asked": 1}))
    assert scene.supervise() == Outcome("stopped", 0, "stopped on request")
    assert scene.training.committed == 10
    assert scene.cluster.running("agent") == []


def killed_at(scene: Scene, seconds: float) -> None:
    """Supervise until kill -9, `seconds` from now."""

    def die() -> None:
        scene.cluster.cut_off = True
        raise Killed

    scene.at(seconds, die)
    with pytest.raises(Killed):
        scene.supervise()
    scene.cluster.cut_off = False


def test_agents_that_outlive_their_supervisor_are_taken_over() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    agents = scene.cluster.running("agent")
    assert len(agents) == 2
    assert scene.supervise().state == "finished"
    assert scene.cluster.started("agent") == agents  # no other was started
    assert len(scene.training.began) == 1
    assert scene.noted("taking over from supervisor 1")
    term = last_term(scene.runs)
    assert term is not None
    assert term.number == 2
    assert scene.cluster.running("rendezvous") == []


def test_run_that_finished_without_a_supervisor_is_finished() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    for _ in range(300):
        scene.clock.sleep(0.2)
    assert scene.cluster.running("agent") == []
    assert scene.cluster.running("rendezvous")
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert scene.cluster.running("rendezvous") == []
    assert len(scene.cluster.started("forget")) == 2  # what the nodes' memory held is freed


def test_agents_of_another_world_are_killed_before_the_run_goes_on() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    old = scene.cluster.running("agent")
    scene.world = World(2, 2)
    assert scene.supervise().state == "finished"
    assert {p.code for p in old} == {-signal.SIGKILL}
    assert len(scene.cluster.started("agent")) == 4


def test_on_a_cluster_where_nothing_lasts_all_begins_anew() -> None:
    scene = Scene(lasting=False)
    killed_at(scene, 20.0)
    for process in scene.cluster.processes:
        process.kill()
    assert scene.supervise().state == "finished"
    assert scene.training.began[1][1] > 0


def test_fenced_supervisor_stops_acting_and_leaves_the_agents_to_the_other() -> None:
    scene = Scene()
    seen: list[Outcome] = []

    def second() -> None:
        seen.append(scene.supervise())

    scene.at(20.0, second)
    first = scene.supervise()
    assert [o.state for o in seen] == ["finished"]
    assert len(scene.cluster.started("agent")) == 2
    assert (first.state, first.exit_code) in (("fenced", EXIT_FENCED), ("finished", 0))
    assert live_state(read_status(scene.runs)) == "finished"


def test_supervisor_that_lost_its_office_does_nothing_more() -> None:
    scene = Scene()
    scene.at(20.0, lambda: take_office(scene.runs, "lab", scene.world) and None)
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("fenced", EXIT_FENCED)
    assert "supervisor 2 on " in outcome.message
    assert len(scene.cluster.running("agent")) == 2
    assert scene.cluster.running("rendezvous")
    assert scene.cluster.started("forget") == []
    status = read_status(scene.runs)
    assert status is not None
    assert status.state == "running"


def test_what_fails_because_another_has_taken_over_is_no_failure_of_the_run() -> None:
    scene = Scene()

    def replaced() -> None:
        take_office(scene.runs, "lab", scene.world)
        failure = Failure(attempt=1, rank=0, time=scene.clock.time(), kind="user", message="no", traceback="")
        scene.runs.write("errors/00001-00000-1.json", failure)

    scene.at(22.0, replaced)  # between two looks at who holds the office
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("fenced", EXIT_FENCED)


def test_fenced_supervisor_takes_its_own_agents_along_where_nothing_lasts() -> None:
    scene = Scene(lasting=False)
    scene.at(20.0, lambda: take_office(scene.runs, "local", scene.world) and None)
    assert scene.supervise().state == "fenced"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    assert scene.cluster.started("forget") == []  # the other's snapshots in memory stay
