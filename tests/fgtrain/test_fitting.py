"""Which micro-batch is next, and which one a step had."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import Refitted, StoreUnavailable
from fgtrain.fitting import KEY, Cut, Fitted, candidates, largest, replan, shareable, smaller
from fgtrain.ladder import Ladder, Shortage, remember, remembered
from fgtrain.plan import Plan, make_plan
from fgtrain.recipe import Batch
from fgtrain.runstore import RunStore
from fgtrain.stores.memory import open_store
from tests.fgtrain.recipes import recipe


def plan(total: int = 64, micro: int = 16) -> Plan:
    return make_plan(recipe(batch=Batch(total=total, micro=micro)), 100)


@given(st.integers(1, 5000))
def test_next_micro_batch_is_a_half_or_the_largest_divisor(micro: int) -> None:
    less = smaller(micro)
    if less is None:
        assert micro == 1
    else:
        assert less == max(d for d in range(1, micro) if micro % d == 0)
        assert micro % 2 or less == micro // 2


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([8, 4, 2, 1])), max_size=6), st.integers(0, 10))
def test_a_step_has_the_smallest_micro_batch_found_up_to_it(found: list[tuple[int, int]], step: int) -> None:
    fitted = Fitted()
    for at, micro in found:
        fitted = fitted.cut(at, micro)
    assert fitted.micro_at(step, 16) == min([16, *(m for at, m in found if at <= step)])
    assert msgspec.json.decode(msgspec.json.encode(fitted), type=Fitted) == fitted


@pytest.mark.parametrize(("planned", "cut", "left"), [(6, 4, 3), (10, 6, 5), (12, 6, 6), (4, 8, 4), (7, 6, 1)])
def test_what_did_not_fit_is_not_tried_again_where_another_world_has_another_plan(
    planned: int, cut: int, left: int
) -> None:
    assert Fitted(cuts=(Cut(0, cut),)).micro_at(0, planned) == left
    assert Fitted(shown=cut).shown_at_most(planned) == left


def test_other_micro_batches_leave_the_steps_as_they_are() -> None:
    before, after = plan(), replan(plan(), 4)
    assert (after.micro, after.micro_batches) == (4, 16)
    for step in range(before.steps):
        assert [p for g in range(4) for p in before.batch(step, g)] == [
            p for g in range(16) for p in after.batch(step, g)
        ]


def test_fit_chooses_among_divisors_that_all_ranks_can_share() -> None:
    assert candidates(plan(), 2, "samples") == [1, 2, 4, 8, 16, 32]
    assert candidates(plan(48, 16), 5, "samples") == [1, 2, 3, 4, 6, 8]
    assert candidates(plan(), 2, "bits") == [1, 2, 4, 8, 16]  # or another world could not share them
    assert shareable(32, plan(), 8) == 8
    assert shareable(4, plan(), 8) == 4


@given(st.integers(1, 200), st.integers(0, 3000))
def test_largest_that_fits_by_arithmetic(total: int, room: int) -> None:
    sizes = [m for m in range(1, total + 1) if total % m == 0]
    found = largest(sizes, lambda micro: 100 + 10 * micro, room)
    fitting = [m for m in sizes if 100 + 10 * m <= room]
    assert found == (max(fitting) if fitting else 1)


def test_ladder_goes_down_to_one_and_says_so_once() -> None:
    kept: list[Fitted] = []
    told: list[Shortage] = []
    ladder = Ladder(plan(micro=4), keep=kept.append, tell=told.append)
    assert ladder.parts(7) == 1
    ladder.shrink(7, 1, 2)
    assert [ladder.parts(7), ladder.parts(6)] == [2, 1]
    ladder.shrink(7, 2, 2)
    assert ladder.parts(7) == 4
    with pytest.raises(MemoryError, match="step 9: out of memory with micro-batches of 1; there is nothing smaller"):
        ladder.shrink(9, 1, 2)
    assert [(s.micro, s.smaller) for s in told] == [(4, 2), (2, 1), (1, None)]
    assert kept[-1].cuts == (Cut(7, 1),)


def test_ladder_ends_above_what_the_network_refuses() -> None:
    kept: list[Fitted] = []
    told: list[Shortage] = []
    ladder = Ladder(plan(micro=4), keep=kept.append, tell=told.append, refuses=lambda: True)
    ladder.shrink(7, 1, 2)
    with pytest.raises(MemoryError, match="with micro-batches of 2; BatchNorm layers refuse a single sample: this is"):
        ladder.shrink(7, 1, 2)
    assert told[-1] == Shortage(7, 1, 2, 2, None, refused=True)
    assert kept == [Fitted(cuts=(Cut(7, 2),))]
    assert isinstance(ladder.leave(7, 2), MemoryError)


def test_evaluation_that_ran_out_of_memory_in_lockstep_takes_less_after_a_restart() -> None:
    kept: list[Fitted] = []
    ladder = Ladder(plan(micro=4), Fitted(8, (Cut(2, 2),)), keep=kept.append)
    error = ladder.leave_evaluation(2)
    assert isinstance(error, Refitted)
    assert str(error) == "out of memory in evaluation with micro-batches of 2; they hold 1 from here on"
    assert kept == [Fitted(8, (Cut(2, 2),), shown=1)]
    assert Ladder(plan(), kept[0]).shown(64) == 1
    assert isinstance(ladder.leave_evaluation(2), MemoryError)
    assert kept[0].cut(3, 1).shown == 1


def test_only_the_leader_records_unless_a_rank_is_alone_with_it() -> None:
    kept: list[Fitted] = []
    told: list[Shortage] = []
    ladder = Ladder(plan(micro=2), leads=False, keep=kept.append, tell=told.append)
    ladder.shrink(0, 1, 2)
    assert (kept, told) == ([], [])
    alone = Ladder(plan(micro=2), leads=False, keep=kept.append, advise=lambda shortage: f". Less of {shortage.micro}")
    error = alone.leave(3, 2)
    assert isinstance(error, Refitted)
    assert str(error) == (
        "step 3: out of memory with micro-batches of 2; they hold 1 from here on, the global batch stays 64. Less of 2"
    )
    assert kept == [Fitted(cuts=(Cut(3, 1),))]
    assert isinstance(alone.leave(3, 2), MemoryError)


def test_what_was_found_is_read_back_and_a_store_that_fails_is_only_noted() -> None:
    runs = RunStore(open_store("memory://fitting"), "run")
    assert remembered(runs) is None
    remember(runs, Fitted(8, (Cut(3, 4),)), pytest.fail)
    assert remembered(runs) == Fitted(8, (Cut(3, 4),))

    class Away(RunStore):
        def write(self, name: str, value: object) -> None:
            assert name == KEY
            raise StoreUnavailable("it is away")

    notes: list[str] = []
    remember(Away(runs.store, "run"), Fitted(), notes.append)
    assert notes == ["the micro-batch that fits could not be recorded: it is away"]
