"""Plans: every position once, whoever computes it; evaluation and learning rates at their steps."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import RecipeError, UserError
from fgtrain.plan import Plan, World, check_world, chosen_world, make_plan, parse_nodes, rate, share
from fgtrain.recipe import AdamW, Batch, Constant, Cosine, Evaluate, Recipe, Step, replace
from tests.fgtrain.recipes import batches, recipe, recipes

sample_counts = st.integers(1, 300)


def plan_of(one: Recipe, samples: int) -> Plan:
    """The plan, of one epoch if the recipe's own epochs come to less than a sample."""
    return make_plan(one if round(one.epochs * samples) else replace(one, epochs=1.0), samples)


@given(recipes, sample_counts, st.data())
def test_every_position_is_computed_exactly_once_by_any_world(one: Recipe, samples: int, data: st.DataObject) -> None:
    plan = plan_of(one, samples)
    size = data.draw(st.integers(1, plan.micro_batches))
    seen: list[int] = []
    for step in range(plan.steps):
        of_step = [
            p for rank in range(size) for g in share(plan.micro_batches, rank, size) for p in plan.batch(step, g)
        ]
        assert len(of_step) == plan.batch_samples(step)
        assert len(of_step) == plan.total or step == plan.steps - 1
        seen += of_step
    assert seen == list(range(plan.positions))


@given(st.integers(1, 500), st.data())
def test_shares_are_even_to_within_one_and_in_order(micro_batches: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, micro_batches))
    shares = [share(micro_batches, rank, size) for rank in range(size)]
    assert [g for s in shares for g in s] == list(range(micro_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(batches, st.floats(0.3, 6), sample_counts, st.floats(0, 4))
def test_evaluation_is_due_at_the_first_step_past_each_multiple_and_at_the_end(
    batch: Batch, epochs: float, samples: int, every: float
) -> None:
    plan = plan_of(recipe(batch=batch, epochs=epochs, evaluate=Evaluate(every_epochs=every)), samples)
    every_steps = plan.evaluate_every
    due = {plan.steps}
    if every_steps:
        tick = max(every_steps, 1.0)
        due |= {math.ceil(k * tick) for k in range(1, int(plan.steps / tick) + 1)}
    assert [s for s in range(plan.steps + 1) if plan.evaluates_after(s)] == sorted(s for s in due if s <= plan.steps)


def test_evaluation_more_often_than_steps_is_every_step() -> None:
    plan = make_plan(recipe(evaluate=Evaluate(every_epochs=1e-300)), 200)
    assert all(plan.evaluates_after(s) for s in range(1, plan.steps + 1))


def test_plan_of_an_endless_run_is_made_at_once() -> None:
    plan = make_plan(recipe(epochs=1e12), 1000)
    assert plan.evaluates_after(plan.steps)
    assert plan.batch(plan.steps - 1, 0).start < plan.positions


@given(recipes, sample_counts)
def test_epoch_counts_to_the_recipes_epochs(one: Recipe, samples: int) -> None:
    plan = plan_of(one, samples)
    assert plan.epoch_at(0) == 0
    assert plan.epoch_at(plan.steps) == plan.positions / samples
    assert plan.epoch_at(plan.steps + 1) == plan.epoch_at(plan.steps)


@given(recipes, sample_counts)
def test_rate_is_finite_and_never_above_the_peak(one: Recipe, samples: int) -> None:
    plan = plan_of(one, samples)
    top = one.optim.lr * max(1.0, getattr(one.schedule, "gamma", 1.0) ** len(getattr(one.schedule, "epochs", ())))
    for step in {0, plan.warmup_steps - 1, plan.warmup_steps, plan.steps // 2, plan.steps - 1} & set(range(plan.steps)):
        assert 0 <= rate(one, plan, step) <= top * (1 + 1e-9)


def test_warm_up_rises_to_the_peak_in_equal_steps() -> None:
    one = recipe(optim=AdamW(lr=1.0), batch=Batch(total=10, micro=10), schedule=Constant(warmup_epochs=0.5), epochs=1.0)
    plan = make_plan(one, 100)
    assert [rate(one, plan, s) for s in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_cosine_begins_at_the_peak_and_approaches_its_final_share() -> None:
    one = recipe(optim=AdamW(lr=2.0), batch=Batch(total=1, micro=1), schedule=Cosine(final=0.1), epochs=1.0)
    plan = make_plan(one, 1000)
    assert rate(one, plan, 0) == 2.0
    assert rate(one, plan, 500) == pytest.approx(2.0 * 0.55)
    assert rate(one, plan, 999) == pytest.approx(0.2, rel=1e-4)
    rates = [rate(one, plan, s) for s in range(1000)]
    assert rates == sorted(rates, reverse=True)


def test_step_schedule_drops_at_its_epochs_exactly() -> None:
    schedule = Step(epochs=(1.0, 2.0), gamma=0.1)
    one = recipe(optim=AdamW(lr=1.0), batch=Batch(total=10, micro=10), schedule=schedule, epochs=3.0)
    plan = make_plan(one, 100)
    assert [rate(one, plan, s) for s in (0, 9, 10, 19, 20, 29)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    one = recipe(optim=AdamW(lr=1.0), schedule=Cosine(warmup_epochs=10))
    plan = make_plan(one, 640)
    assert rate(one, plan, plan.steps - 1) == pytest.approx(plan.steps / plan.warmup_steps)


@pytest.mark.parametrize(
    ("total", "micro", "fix"),
    [(63, 16, "batch.total=64"), (1, 16, "batch.total=16"), (100, 48, "batch.total=96")],
)
def test_total_that_is_no_multiple_of_micro_is_refused_with_one_that_is(total: int, micro: int, fix: str) -> None:
    with pytest.raises(RecipeError, match=fix):
        make_plan(recipe(batch=Batch(total=total, micro=micro)), 100)


def test_run_without_a_sample_is_refused() -> None:
    with pytest.raises(RecipeError, match="raise epochs"):
        make_plan(recipe(epochs=0.001), 100)


@given(batches, st.integers(1, 40), st.integers(1, 8))
def test_world_is_taken_when_it_can_share_and_else_the_proposed_fix_works(batch: Batch, nodes: int, gpus: int) -> None:
    world, plan = World(nodes, gpus), make_plan(recipe(batch=batch), 100)
    if world.size <= plan.micro_batches:
        check_world(plan, world)
        return
    with pytest.raises(RecipeError) as caught:
        check_world(plan, world)
    message = str(caught.value)
    field, value = message.split("--set batch.")[1].split(",")[0].split("=")
    mended = {"total": batch.total, "micro": batch.micro} | {field: int(value)}
    check_world(make_plan(recipe(batch=Batch(**mended)), 100), world)


@pytest.mark.parametrize(("nodes", "gpus"), [(0, 1), (1, 0), (-1, 1), (1, -2), (-1, -1)])
def test_world_without_ranks_is_refused(nodes: int, gpus: int) -> None:
    with pytest.raises(RecipeError, match=f"--nodes {nodes} --gpus {gpus}: both must be 1 or more"):
        check_world(make_plan(recipe(), 100), World(nodes, gpus))


def test_nodes_are_one_number_or_the_fewest_and_the_most() -> None:
    assert parse_nodes("2") == (2, None)
    assert parse_nodes("2:8") == (2, 8)
    assert parse_nodes("3:3") == (3, 3)


@pytest.mark.parametrize(
    ("text", "fix"),
    [("8:2", "--nodes 2:8"), ("two", "a number of nodes"), ("2:", "a number of nodes"), ("1:2:3", "a number of nodes")],
)
def test_nodes_that_make_no_sense_are_refused_with_what_would(text: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        parse_nodes(text)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 4), st.integers(0, 3))
def test_world_survives_json_and_its_span_is_read_as_it_was_written(
    nodes: int, more: int, gpus: int, spares: int
) -> None:
    world = World(nodes, gpus, nodes + more if more else None, spares, 4.5)
    assert msgspec.json.decode(msgspec.json.encode(world), type=World) == world
    assert parse_nodes(world.span) == (world.nodes, world.max_nodes)
    assert (world.most, world.started) == (nodes + more, nodes + more + spares)
    assert world.size == world.most * gpus


def test_world_of_an_old_run_is_readable() -> None:
    assert msgspec.json.decode(b'{"nodes":2,"gpus":1}', type=World) == World(2, 1)


def test_what_is_said_on_the_command_line_wins_over_the_record() -> None:
    recorded = World(2, 4, 8, 1, 5.0)
    assert chosen_world(recorded, None, None, None, None) == recorded
    assert chosen_world(recorded, "3", 2, 0, 1.0) == World(3, 2, None, 0, 1.0)


@pytest.mark.parametrize("world", [World(1, 1, None, -1), World(1, 1, None, 0, 0.1), World(1, 1, 99)])
def test_world_out_of_range_is_refused(world: World) -> None:
    with pytest.raises(RecipeError, match=r"--spares -1|--detect 0.1|99 processes cannot share"):
        check_world(make_plan(recipe(), 100), world)
