"""Failures by class, from exit statuses and exception texts; the cause of an incident; the same exception twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import StoreUnavailable
from fgtrain.notice import LEAVES
from fgtrain.runstore import Failure
from fgtrain.worker import _kind as kind_of
from launcher.failures import (
    KINDS,
    Poison,
    Sign,
    agents_word,
    cause,
    classify_exit,
    classify_text,
    sign_of,
    spell_exit,
    tells_of_a_join,
    worker_exit,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...", "oom"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: ...", "oom"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        ("MemoryError: ", "oom"),
        ("RuntimeError: Triton Error [CUDA]: out of memory", "oom"),
        ("AcceleratorError: CUDA error: out of memory", "oom"),
        ("DistBackendError: NCCL error ... Last error:\nCuda failure 2 'out of memory'", "oom"),
        ("OSError: [Errno 12] Cannot allocate memory", "oom"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "hardware"),
        ("AcceleratorError: CUDA error: unspecified launch failure", "hardware"),
        ("RuntimeError: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "hardware"),
        ("RuntimeError: CUDA error: no CUDA-capable device is detected", "hardware"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/x'", "capacity"),
        ("StoreError: file:///x: the disk is full", "capacity"),
        ("ValueError: Expected more than 1 value per channel", "error"),
        ("AssertionError: executing the memory of a past step", "error"),
        ("", "error"),
    ],
)
def test_exception_is_classed_by_its_text(text: str, kind: str) -> None:
    assert classify_text(text) == kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [(75, "preemption"), (-15, "preemption"), (143, "preemption"), (137, "oom"), (-9, "lost"), (-11, "lost")]
    + [(139, "lost"), (-7, "capacity"), (2, "user"), (1, "error"), (3, "error")],
)
def test_exit_status_is_classed(code: int, kind: str) -> None:
    assert classify_exit(code) == kind


@given(st.integers(-64, 255), st.text(max_size=80))
def test_everything_has_a_class_and_a_name(code: int, text: str) -> None:
    assert classify_exit(code) in KINDS
    assert classify_text(text) in KINDS
    assert str(abs(code)) in spell_exit(code) or spell_exit(code).startswith("SIG")


@pytest.mark.parametrize("kind", ["fn: main (start_method: spawn)", "binary: /usr/bin/python3"])
def test_torchruns_word_on_a_dead_worker_is_understood(kind: str) -> None:
    line = f"E1121 22:55:01.1 123 torch/distributed/x.py:9] failed (exitcode: -9) local_rank: 3 (pid: 4711) of {kind}"
    sign = worker_exit("node1", 5.0, line)
    assert sign is not None
    assert (sign.kind, sign.node, sign.peer) == ("lost", "node1", False)
    assert sign.message == "a worker of node1 (local rank 3) ended with SIGKILL"


@pytest.mark.parametrize("code", [1, 2])
def test_worker_that_could_speak_for_itself_explains_nothing_by_its_exit_status(code: int) -> None:
    sign = worker_exit("node1", 5.0, f"failed (exitcode: {code}) local_rank: 0 (pid: 7) of binary: x")
    assert sign is not None
    assert (sign.kind, sign.peer) == ("lost", True)


def test_worker_that_left_when_asked_to_says_so_in_words_and_explains_nothing() -> None:
    sign = worker_exit("node0", 5.0, "failed (exitcode: 75) local_rank: 0 (pid: 7) of binary: x")
    assert sign is not None
    assert (sign.kind, sign.peer, sign.asked) == ("preemption", True, True)
    assert sign.message == "a worker of node0 (local rank 0) left when asked to, its snapshot committed"


@pytest.mark.parametrize("code", [75, 76, 137])
def test_exit_codes_with_a_meaning_are_told_in_words(code: int) -> None:
    assert len(spell_exit(code).partition(f"exit code {code}: ")[2]) > 10


SAID = "02:08:48 agent 32056: "


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (SAID + "node1 silent for 3.0 s", ("lost", "node1", "node1 silent for 3.0 s")),
        (SAID + "round 0 is over: node1 silent for 3.0 s", ("lost", "node1", "node1 silent for 3.0 s")),
        (SAID + "a-1, b.2 silent for 12.1 s", ("lost", "a-1", "a-1, b.2 silent for 12.1 s")),
        (SAID + LEAVES, ("preemption", "node0", "node0 left after a notice")),
        (SAID + "round 1: node rank 0 of 2 after node1 silent for 3.0 s", None),
        (SAID + "cut off: no answer from the store that agents meet in for 3.1 s", None),
    ],
)
def test_agents_name_the_node_that_is_gone(line: str, said: tuple[str, str, str] | None) -> None:
    sign = agents_word("node0", 5.0, line)
    assert (sign and (sign.kind, sign.node, sign.message)) == said


def test_agents_tell_of_a_join() -> None:
    assert tells_of_a_join(SAID + "round 2: node rank 0 of 2 after nodes join")
    assert not tells_of_a_join(SAID + "round 2: node rank 0 of 2 after node1 left")


def test_other_lines_of_the_log_are_no_signs() -> None:
    line = "[agent] worker group successfully finished."
    assert worker_exit("node1", 5.0, line) is agents_word("node1", 5.0, line) is None


def reported(kind: str, message: str = "boom", **more: object) -> Failure:
    fields = {"attempt": 1, "rank": 0, "time": 0.0, "kind": kind, "message": message, "traceback": f"tb of {message}"}
    return Failure(**(fields | more))  # type: ignore[arg-type]


def test_report_of_a_worker_becomes_a_sign() -> None:
    assert sign_of(reported("user")).kind == "user"
    assert sign_of(reported("user")).traceback == ""
    assert sign_of(reported("peer", "NCCL error: unhandled system error")).peer
    assert sign_of(reported("error", "CUDA out of memory")).kind == "oom"
    assert sign_of(reported("fitted", "out of memory in step 3")).kind == "fitted"


signs = st.builds(
    Sign, st.sampled_from(KINDS), st.text(max_size=5), st.floats(0, 100), peer=st.booleans(), rank=st.integers(0, 3)
)


@given(st.lists(signs, min_size=1).flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))))
def test_cause_does_not_depend_on_the_order_of_hearing(orders: tuple[list[Sign], list[Sign]]) -> None:
    one, other = map(cause, orders)
    assert (one.peer, one.kind, one.time) == (other.peer, other.kind, other.time)
    assert not one.peer or all(s.peer for s in orders[0])


def test_cause_is_the_first_failing_rank_and_not_one_that_lost_it() -> None:
    peer = Sign("lost", "Connection closed by peer", 1.0, peer=True, traceback="tb of the peer")
    late, early = Sign("error", "also", 3.0, traceback="tb late"), Sign("error", "boom", 2.0, traceback="tb")
    assert cause([peer, late, early]) is early


def error(message: str, step: int | None, attempt: int = 1, rank: int = 0) -> Sign:
    return Sign("error", message, attempt=attempt, rank=rank, step=step, traceback="tb")


def test_same_exception_at_the_same_step_in_two_incidents_is_poison() -> None:
    poison = Poison()
    assert poison.repeated([error("boom", 7), error("boom", 7, rank=1)], {}) is None
    assert poison.repeated([error("boom", 7, attempt=2, rank=1)], {}) is not None


@pytest.mark.parametrize("second", [error("boom", 8, 2), error("bang", 7, 2), error("boom", None, 2)])
def test_another_exception_or_step_is_not(second: Sign) -> None:
    poison = Poison()
    assert poison.repeated([error("boom", 7)], {1: 5, 2: 5}) is None
    assert poison.repeated([second], {1: 5, 2: 5}) is None


def test_addresses_in_the_text_do_not_tell_exceptions_apart() -> None:
    poison = Poison()
    assert poison.repeated([error("bad <object at 0x7f01>", 7)], {}) is None
    assert poison.repeated([error("bad <object at 0x7fA9>", 7, attempt=2)], {}) is not None


def test_before_any_step_the_attempts_beginning_counts_and_before_any_attempt_the_rank() -> None:
    poison = Poison()
    assert poison.repeated([error("boom", None, 1)], {1: 5}) is None
    assert poison.repeated([error("boom", None, 2)], {1: 5, 2: 10}) is None
    assert poison.repeated([error("boom", None, 3)], {3: 10}) is not None
    assert poison.repeated([error("early", None, 0, rank=0)], {}) is None
    assert poison.repeated([error("early", None, 0, rank=1)], {}) is None
    assert poison.repeated([error("early", None, 0, rank=1)], {}) is not None


def test_an_outage_may_come_twice_at_the_same_step_and_is_told_in_a_line() -> None:
    poison = Poison()
    kind = kind_of(StoreUnavailable("store s3://b: no connection"))
    sign = sign_of(reported(kind, "store s3://b: no connection", step=7))
    assert (sign.kind, sign.traceback) == ("error", "")
    assert poison.repeated([sign], {}) is None
    assert poison.repeated([sign._replace(attempt=2)], {}) is None
    assert sign_of(reported("outage", "store file:///b: the disk is full")).kind == "capacity"


def test_lost_peers_are_never_poison() -> None:
    poison = Poison()
    for attempt in (1, 2, 3):
        sign = sign_of(reported("peer", attempt=attempt, step=7))
        assert poison.repeated([sign], {}) is None
