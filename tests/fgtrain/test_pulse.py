"""The pulse file: a slot a rank, read back as written; half-written slots are passed over."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain import unhang
from fgtrain.compiled import Patience
from fgtrain.pulse import FILE, Beat, Phase, Pulse, Stage, birth, decode, encode
from tests.testbed.runs import wait_for

beats = st.builds(
    Beat,
    slot=st.just(0),
    phase=st.sampled_from(Phase),
    stage=st.sampled_from(Stage),
    rank=st.integers(0, 2**32 - 1),
    attempt=st.integers(0, 2**32 - 1),
    pid=st.integers(0, 2**63),
    step=st.integers(0, 2**63),
    ticks=st.integers(0, 2**63),
    work_s=st.floats(0, 1e9),
    born=st.text("0123456789", max_size=16),
    first=st.integers(0, 2**63),
    passes=st.integers(0, 2**32 - 1),
)


@given(st.lists(beats, max_size=5))
def test_slots_are_read_back_in_order(some: list[Beat]) -> None:
    assert decode(b"".join(map(encode, some))) == [b._replace(slot=i) for i, b in enumerate(some)]


@given(beats, beats, st.integers(1, 127))
def test_slot_that_is_being_written_is_passed_over_or_whole(old: Beat, new: Beat, at: int) -> None:
    for beat in decode(encode(new)[:at] + encode(old)[at:]):
        apart = {"ticks": 0, "stage": Stage.NONE, "passes": 0}  # written by themselves
        assert beat._replace(**apart) in (old._replace(**apart), new._replace(**apart))


def test_slot_that_nobody_has_written_is_no_rank(tmp_path: Path) -> None:
    Pulse(tmp_path, slot=2, rank=5)
    assert [(b.slot, b.rank, b.pid) for b in decode((tmp_path / FILE).read_bytes())] == [(2, 5, os.getpid())]


def test_every_move_is_seen_and_the_pulse_ticks(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, slot=0, rank=3)

    def read() -> Beat:
        return wait_for(lambda: decode((tmp_path / FILE).read_bytes()), "a whole slot")[0]

    assert (read().phase, read().attempt, pulse.step) == (Phase.START, 0, None)
    pulse.begun(2, 5)
    pulse.step_begins(7)
    pulse.stage(Stage.LOAD)
    pulse.passes(3)
    with pulse.meanwhile(Phase.COMPILE):
        assert (read().phase, read().passes) == (Phase.COMPILE, 0)
    assert read().passes == 3
    assert (read().phase, read().stage, read().attempt, read().step) == (Phase.STEP, Stage.LOAD, 2, 7)
    assert (pulse.step, read().first) == (7, 5)
    pulse.stage(Stage.EXCHANGE)
    pulse.worked(0.5)
    pulse.phase(Phase.EVALUATE)
    assert (read().phase, read().stage, read().work_s, read().passes) == (Phase.EVALUATE, Stage.NONE, 0.5, 0)
    assert pulse.step is None
    wait_for(lambda: read().ticks >= 2, "two ticks")


def test_ranks_that_begin_at_once_do_not_shorten_the_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for i in range(40):
            folder = tmp_path / str(i)
            folder.mkdir()
            list(pool.map(lambda slot, to=folder: Pulse(to, slot=slot, rank=slot), range(4)))
            assert [b.rank for b in decode((folder / FILE).read_bytes())] == [0, 1, 2, 3]


def test_pulse_without_a_file_writes_nothing() -> None:
    pulse = Pulse()
    pulse.step_begins(7)
    assert pulse.step == 7


STUCK = """
import faulthandler, pathlib, signal, sys, time
from fgtrain.pulse import Pulse
faulthandler.register(signal.SIGUSR2)
def in_a_collective():
    Pulse(pathlib.Path(sys.argv[1]), slot=int(sys.argv[2]))
    time.sleep(600)
in_a_collective()
"""


def test_hanging_rank_writes_its_stack_and_is_killed_and_others_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stacks_are_there(seconds: float) -> None:
        """Take as long as the ranks need, not the moment that they have outside of tests."""
        for i in range(2):
            log = tmp_path / f"{i}.log"
            wait_for(lambda log=log: "in in_a_collective" in log.read_text(), f"the stack of rank {i}")
        assert [rank.poll() for rank in ranks] == [None, None]

    monkeypatch.setattr(unhang, "time", SimpleNamespace(sleep=stacks_are_there))
    monkeypatch.setattr(sys, "argv", ["unhang", str(tmp_path), "--kill", "1"])
    argv = [sys.executable, "-c", STUCK, str(tmp_path)]
    ranks = [subprocess.Popen([*argv, str(i)], stderr=(tmp_path / f"{i}.log").open("w")) for i in range(2)]
    try:
        wait_for(lambda: len(decode(_bytes(tmp_path))) == 2, "both ranks are there")
        unhang.main()
        assert ranks[1].wait(240) == -9
        assert ranks[0].poll() is None
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(240)


def test_process_that_only_has_the_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        stale = Beat(0, Phase.STEP, Stage.LOAD, 0, 1, bystander.pid, 7, 0, 0.0, birth(bystander.pid) + "0")
        (tmp_path / FILE).write_bytes(encode(stale))
        subprocess.run([sys.executable, "-m", "fgtrain.unhang", str(tmp_path), "--kill", "0"], check=True)
        assert bystander.poll() is None
        bystander.communicate(b"\n", timeout=240)
        assert bystander.returncode == 0


def _bytes(folder: Path) -> bytes:
    file = folder / FILE
    return file.read_bytes() if file.exists() else b""


def test_watchdog_is_told_while_kernels_are_made_and_only_then(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path)

    def shown() -> tuple[Phase, Stage]:
        (beat,) = decode((tmp_path / FILE).read_bytes())
        return beat.phase, beat.stage

    patience = Patience(pulse, compiles=True)
    pulse.step_begins(3)
    pulse.stage(Stage.COMPUTE)
    with patience.first(8, False):
        assert shown()[0] is Phase.COMPILE
    assert shown() == (Phase.STEP, Stage.COMPUTE)
    with patience.first(8, False):
        assert shown() == (Phase.STEP, Stage.COMPUTE)
    with patience.first(4, False):
        assert shown()[0] is Phase.COMPILE
    with Patience(pulse, compiles=False).first(1):
        assert shown()[0] is Phase.STEP
    assert pulse.step == 3
