"""Many signs, one incident: what belongs together is decided on once, and nothing is forgotten or counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.notice import LEAVES
from launcher.failures import KINDS, Sign
from launcher.incidents import PEERS_S, SETTLE_S, Incidents
from launcher.supervision import Supervision, changed

LINE = "failed (exitcode: {}) local_rank: 0 (pid: 7) of binary: python"


@pytest.fixture
def incidents() -> Incidents:
    found = Incidents(changed(Supervision(), ["lost.tries=3"]), "run")
    found.attempt(1, 0)
    return found


def lost(attempt: int = 0, node: str = "a") -> Sign:
    return Sign("lost", "gone", node=node, attempt=attempt)


def test_nothing_is_decided_before_all_had_time_to_speak(incidents: Incidents) -> None:
    incidents.add(10.0, lost())
    assert incidents.decide(10.0 + SETTLE_S / 2) is None
    assert incidents.decide(10.0 + SETTLE_S) is not None
    assert incidents.decide(99.0) is None


def test_users_mistake_is_told_at_once(incidents: Incidents) -> None:
    incidents.add(10.0, Sign("user", "no such folder", attempt=1))
    decision = incidents.decide(10.0)
    assert decision is not None
    assert decision.verdict == (2, "no such folder", "")


def test_cause_wins_over_what_was_heard_first(incidents: Incidents) -> None:
    incidents.add(10.0, Sign("lost", "Connection closed by peer", peer=True, attempt=1))
    incidents.log_line(10.1, "b", 5.0, LINE.format(1))
    incidents.add(11.0, Sign("oom", "CUDA out of memory", attempt=1, traceback="tb"))
    decision = incidents.decide(12.0)
    assert decision is not None
    assert decision.note == "oom: CUDA out of memory; try 1 of 2"


def test_smaller_micro_batches_at_the_same_step_spend_no_other_budget() -> None:
    incidents = Incidents(Supervision(), "run")
    for attempt in range(1, 8):
        incidents.attempt(attempt, 0)
        sign = Sign("fitted", "out of memory in step 0", attempt=attempt, step=0, traceback="tb")
        incidents.add(10.0 * attempt, sign)
        incidents.add(10.0 * attempt, Sign("lost", "Connection closed by peer", peer=True, attempt=attempt))
        decision = incidents.decide(10.0 * attempt + SETTLE_S)
        assert decision is not None
        assert (decision.cause.kind, decision.retry.allowed, decision.retry.delay_s) == ("fitted", True, 0.0)
        assert decision.verdict is None


SAID = "02:08:48 agent 32056: "


@pytest.mark.parametrize("code", [1, 75])
def test_node_that_leaves_is_named_and_not_the_one_that_stays(incidents: Incidents, code: int) -> None:
    incidents.log_line(10.0, "stays", 5.0, LINE.format(code))
    assert incidents.decide(10.0 + SETTLE_S) is None, "whoever follows others waits for word of them"
    incidents.log_line(12.0, "goes", 7.0, SAID + LEAVES)
    decision = incidents.decide(12.0)
    assert decision is not None
    assert decision.cause.node == "goes"
    assert decision.note == "preemption: goes left after a notice; try 1 of 1000"
    incidents.gone(24.0, Sign("preemption", "goes left after a notice", node="goes"), again=False)
    assert incidents.decide(99.0) is None, "its agent's end, some time later, is no news"


def test_node_that_fell_silent_is_named_and_not_the_one_that_lost_it(incidents: Incidents) -> None:
    incidents.log_line(10.0, "a", 5.0, LINE.format(1))
    for number, node in enumerate("ac"):
        incidents.log_line(13.0 + number, node, 8.0, SAID + "b silent for 3.0 s")
    decision = incidents.decide(15.0)
    assert decision is not None
    assert (decision.cause.node, decision.note) == ("b", "lost: b silent for 3.0 s; try 1 of 3")
    incidents.log_line(15.5, "d", 5.0, SAID + "b silent for 3.1 s")
    assert incidents.decide(99.0) is None


def test_agent_that_died_is_not_lost_again_when_it_is_found_silent(incidents: Incidents) -> None:
    for now in (10.0, 14.0):
        incidents.gone(now, lost(node="b"), again=True)
        assert incidents.decide(now + SETTLE_S) is not None, "each death counts"
    incidents.log_line(17.0, "a", 5.0, SAID + "b silent for 3.0 s")
    assert incidents.decide(99.0) is None


def test_workers_that_leave_for_nodes_that_join_are_no_incident(incidents: Incidents) -> None:
    incidents.log_line(10.0, "a", 5.0, LINE.format(75))
    incidents.log_line(11.0, "a", 5.0, SAID + "round 2: node rank 0 of 2 after nodes join")
    assert incidents.decide(99.0) is None
    assert incidents.open_nodes == set()


def test_followers_alone_are_decided_on_in_the_end(incidents: Incidents) -> None:
    incidents.log_line(10.0, "a", 5.0, LINE.format(1))
    assert incidents.decide(10.0 + PEERS_S) is not None


def test_late_word_on_an_attempt_that_was_decided_on_is_no_new_incident(incidents: Incidents) -> None:
    incidents.log_line(10.0, "a", 5.0, LINE.format(-9))
    assert incidents.decide(12.0) is not None
    incidents.add(13.0, Sign("lost", "Connection closed by peer", peer=True, attempt=1))
    incidents.log_line(13.0, "b", 5.0, LINE.format(1))
    assert incidents.decide(99.0) is None


def test_workers_that_die_again_before_the_next_attempt_are_a_new_incident(incidents: Incidents) -> None:
    for number, now in enumerate((10.0, 20.0, 30.0), 1):
        incidents.log_line(now, "a", 5.0, LINE.format(-9))
        decision = incidents.decide(now + 2)
        assert decision is not None
        assert decision.retry.number == number
        assert decision.verdict is None
    incidents.log_line(40.0, "a", 5.0, LINE.format(-9))
    decision = incidents.decide(42.0)
    assert decision is not None
    assert decision.verdict is not None
    assert decision.verdict.message.startswith("given up (lost, 4 times without progress past step 0): a worker of a")


def test_next_attempts_failure_waits_for_a_decision_of_its_own(incidents: Incidents) -> None:
    incidents.add(10.0, lost(attempt=1))
    incidents.attempt(2, 0)
    incidents.add(10.5, Sign("oom", "CUDA out of memory", attempt=2))
    first, second = incidents.decide(11.5), incidents.decide(13.0)
    assert first is not None
    assert second is not None
    assert (first.cause.kind, second.cause.kind) == ("lost", "oom")


def test_attempt_that_nobody_had_announced_is_decided_on_too(incidents: Incidents) -> None:
    incidents.add(10.0, lost(attempt=7))
    assert incidents.decide(12.0) is not None
    assert incidents.decide(20.0) is None


def test_advice_comes_with_giving_up(incidents: Incidents) -> None:
    for attempt in (2, 3, 4):
        incidents.attempt(attempt, 0)
        incidents.add(attempt * 10.0, Sign("oom", "CUDA out of memory", attempt=attempt, traceback="tb"))
        decision = incidents.decide(attempt * 10.0 + 2)
        assert decision is not None
    assert decision.verdict is not None
    assert "a smaller batch.micro needs less memory" in decision.verdict.message
    assert decision.verdict.traceback == "tb"


signs = st.builds(Sign, st.sampled_from(KINDS), st.just("m"), attempt=st.integers(0, 6), node=st.sampled_from("ab"))
HUGE = changed(Supervision(), [f"{k}.tries=100000" for k in KINDS if k != "user"])


@given(st.lists(st.tuples(st.floats(0.1, 5.0), signs), max_size=30))
def test_every_sign_is_decided_on_at_most_once_and_nothing_stays_open(events: list[tuple[float, Sign]]) -> None:
    incidents, now, decided = Incidents(HUGE, "run"), 0.0, 0
    for pause, sign in events:
        now += pause
        if decision := incidents.decide(now):
            decided += len(decision.signs)
        incidents.add(now, sign)
    for _ in range(len(events) + 1):
        now += PEERS_S
        if decision := incidents.decide(now):
            assert decision.cause in decision.signs
            decided += len(decision.signs)
    assert decided <= len(events)
    assert incidents.open_nodes == set()
    assert decided >= sum(sign.attempt == 0 for _, sign in events)
