"""The watchdog: learned limits, exempt phases, who is named, who is slow. By a clock of the test's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fgtrain.pulse import Beat, Phase, Stage
from launcher.supervision import Hang, Straggler
from launcher.watchdog import Watchdog

HANG = Hang(factor=10.0, floor_s=30.0, first_steps=3, quiet_s=600.0)


def beat(**changes: Any) -> Beat:
    at = Beat(0, Phase.STEP, Stage.EXCHANGE, 0, 1, 4711, 0, 0, 0.1, "b")
    return at._replace(**changes)


class Group:
    """Ranks, one a node, seen once a second."""

    def __init__(self, ranks: int = 2, straggler: Straggler | None = None) -> None:
        self.dog = Watchdog(HANG, straggler or Straggler())
        self.beats = {f"n{i}": beat(rank=i, pid=100 + i) for i in range(ranks)}
        self.now = 0.0
        self.notes: list[str] = []

    def change(self, *ranks: int, **changes: Any) -> None:
        for i in ranks or range(len(self.beats)):
            self.beats[f"n{i}"] = self.beats[f"n{i}"]._replace(**changes)

    def wait(self, seconds: float, frozen: tuple[int, ...] = (), period: float = 1.0) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += period
            for name, one in self.beats.items():
                if one.rank not in frozen:
                    self.beats[name] = one._replace(ticks=one.ticks + 1)
            self.notes += self.dog.observe(self.now, {n: [b] for n, b in self.beats.items()})

    def steps(self, count: int, each_s: float) -> None:
        for _ in range(count):
            self.change(step=self.beats["n0"].step + 1)
            self.wait(each_s)

    def hung(self) -> Any:
        return self.dog.hung(self.now)


def test_group_that_moves_never_hangs() -> None:
    group = Group()
    for each_s in (1, 1, 1, 1, 1, 20, 1, 40, 300):
        group.steps(1, each_s)
        assert each_s > 30 or not group.hung()


def test_limit_is_learned_and_not_below_the_floor() -> None:
    group = Group()
    group.steps(20, 1.0)
    assert group.dog.limit_s() == 30.0
    group = Group()
    group.steps(20, 8.0)
    assert group.dog.limit_s() == 80.0


def test_slow_step_that_was_seen_is_no_hang_later() -> None:
    group = Group()
    group.steps(10, 1.0)
    group.steps(1, 25.0)
    group.steps(3, 1.0)
    assert group.dog.limit_s() == 50.0


def test_first_steps_are_exempt_and_not_learned_from() -> None:
    group = Group()
    group.steps(1, 200.0)
    assert group.hung() is None
    group.steps(1, 120.0)
    group.steps(10, 1.0)
    assert group.dog.limit_s() == 30.0


def test_steps_that_are_quicker_than_looks_are_learned_from_too() -> None:
    group = Group()
    group.wait(1.0)
    group.change(step=12)
    group.wait(1.0)
    assert group.dog.limit_s() == 30.0


def test_steps_before_the_first_look_at_them_are_learned_from_too() -> None:
    group = Group()
    group.change(phase=Phase.RESTORE, attempt=0)
    group.wait(5.0)
    group.change(phase=Phase.STEP, attempt=1, first=40, step=60)
    group.wait(1.0)
    assert group.dog.limit_s() == 30.0
    group.wait(31.0)
    assert group.hung() is not None


def test_new_attempt_compiles_anew() -> None:
    group = Group()
    group.steps(10, 1.0)
    group.change(attempt=2, pid=200, step=8, first=8)
    group.wait(100.0)
    assert group.dog.limit_s() == HANG.quiet_s
    assert group.hung() is None


def test_other_phases_are_exempt_on_any_rank() -> None:
    for phase in (Phase.START, Phase.RESTORE, Phase.EVALUATE, Phase.FINISH):
        group = Group()
        group.steps(10, 1.0)
        group.change(1, phase=phase)
        group.wait(500.0)
        assert group.hung() is None
        group.wait(101.0)
        assert group.hung() is not None


def test_frozen_rank_is_named() -> None:
    group = Group(4)
    group.steps(10, 1.0)
    group.wait(31.0, frozen=(2,))
    assert [(r.node, r.slot, r.rank) for r in group.hung().ranks] == [("n2", 0, 2)]
    assert group.hung().text.startswith("rank 2 on n2 hangs (step 10, exchange): no rank moved for 31 s")


def test_rank_that_others_wait_for_is_named() -> None:
    group = Group(3)
    group.steps(10, 1.0)
    group.change(1, stage=Stage.LOAD)
    group.wait(31.0)
    assert [r.rank for r in group.hung().ranks] == [1]


def test_all_are_named_where_nobody_differs() -> None:
    group = Group(2)
    group.steps(10, 1.0)
    group.change(0, stage=Stage.UPDATE)  # it has what it needs of the others, as has whoever is in the exchange
    group.wait(31.0)
    assert [r.rank for r in group.hung().ranks] == [0, 1]
    assert "ranks 0 on n0, 1 on n1 hang" in group.hung().text


def test_rank_in_a_pass_that_counts_for_nothing_is_named_and_not_the_one_that_waits_for_it_in_a_later_pass() -> None:
    """Under FSDP and ZeRO, a rank with fewer micro-batches is said to exchange while others still compute."""
    group = Group(2)
    group.steps(10, 1.0)
    group.change(0, passes=2, stage=Stage.EXCHANGE)  # it hangs in its second pass, the last of its own being the first
    group.change(1, passes=3, stage=Stage.COMPUTE)  # it is through with two, and waits for the other in the third
    group.wait(31.0)
    assert [r.rank for r in group.hung().ranks] == [0]


def test_nobody_in_particular_is_named_where_all_are_in_the_same_pass() -> None:
    """Who computes and who waits for it cannot be told apart: the exchange is a part of the pass."""
    group = Group(2)
    group.steps(10, 1.0)
    group.change(0, passes=1, stage=Stage.EXCHANGE)
    group.change(1, passes=1, stage=Stage.COMPUTE)
    group.wait(31.0)
    assert [r.rank for r in group.hung().ranks] == [0, 1]


def test_rank_whose_pictures_do_not_come_is_named_where_others_wait_for_it_in_the_pass() -> None:
    group = Group(3)
    group.steps(10, 1.0)
    group.change(passes=2, stage=Stage.COMPUTE)
    group.change(2, stage=Stage.LOAD)
    group.wait(31.0)
    assert [r.rank for r in group.hung().ranks] == [2]


def test_passes_are_moves() -> None:
    group = Group(2)
    group.steps(10, 1.0)
    for passes in range(1, 5):
        group.change(passes=passes)
        group.wait(20.0)
        assert group.hung() is None


def test_who_was_acted_on_has_its_time_anew() -> None:
    group = Group()
    group.steps(10, 1.0)
    group.wait(31.0)
    assert group.hung()
    group.dog.acted(group.now)
    assert group.hung() is None


def test_slot_that_a_dead_rank_left_is_no_hang_and_no_excuse() -> None:
    group = Group(3)
    group.steps(10, 1.0)
    group.change(0, 1, attempt=2, step=10)  # rank 2's node has left: the world is smaller
    group.steps(10, 1.0)
    group.change(2, attempt=1)
    group.wait(31.0, frozen=(2,))
    assert [r.rank for r in group.hung().ranks] == [0, 1]


def test_node_that_cannot_be_read_for_a_while_is_not_forgotten() -> None:
    group = Group()
    group.steps(10, 1.0)
    start = group.now
    for second in range(1, 32):
        group.dog.observe(start + second, {"n0": [], "n1": []})
    assert group.dog.hung(start + 31) is not None


def test_nothing_seen_is_nothing_hung() -> None:
    assert Watchdog(HANG, Straggler()).hung(1e9) is None


@given(st.lists(st.floats(0.1, 29.0), min_size=1, max_size=40), st.integers(1, 4))
def test_steps_below_the_floor_are_never_a_hang(times: list[float], ranks: int) -> None:
    group = Group(ranks)
    for each_s in times:
        group.change(step=group.beats["n0"].step + 1)
        group.wait(each_s, period=max(1.0, each_s / 3))
        assert group.hung() is None


def test_straggler_is_told_once_it_has_been_slow_for_long() -> None:
    group = Group(4)
    group.change(3, work_s=0.2)
    group.steps(20, 1.0)
    assert group.notes == []
    group.steps(20, 1.0)
    assert group.notes == ["rank 3 on n3 is slow: 200 ms of work before each exchange, the others' median is 100 ms"]


def test_rank_that_was_slow_for_a_moment_is_not_told() -> None:
    group = Group(4)
    for _ in range(5):
        group.change(3, work_s=0.2)
        group.steps(20, 1.0)
        group.change(3, work_s=0.1)
        group.steps(2, 1.0)
    assert group.notes == []


def test_group_that_stands_still_has_no_stragglers() -> None:
    group = Group(4)
    group.steps(10, 1.0)
    group.change(3, work_s=0.2)
    group.wait(100.0)
    assert group.notes == []


def test_lone_rank_is_no_straggler() -> None:
    group = Group(1)
    group.change(0, work_s=9.0)
    group.steps(100, 1.0)
    assert group.notes == []
