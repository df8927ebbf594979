"""What is said of a shortage of memory."""

from __future__ import annotations

import pytest

from fgtrain.ladder import Shortage
from fgtrain.memory import Moment, Sizes, estimate
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Ema, Recipe, replace
from fgtrain.savings import Saving, savings, spell, spell_one
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO
from tests.fgtrain.recipes import recipe

MIB = 1 << 20


def options(of: Recipe, world: int = 1, device: str = "cuda") -> list[str]:
    return [s.option for s in found(of, world, device)]


def found(of: Recipe, world: int = 1, device: str = "cuda") -> list[Saving]:
    return savings(replace(of, batch=Batch(total=64, micro=16)), lambda r: needs(r, world, device))


def needs(r: Recipe, world: int, device: str = "cuda") -> int:
    """What a made-up network needs: 100 MiB of weights, and 64 MiB a sample at 28 pixels and fp32."""
    if r.precision == "fp16":
        raise ValueError("it does not do that")
    whole = 25 * MIB
    trains = 0 if getattr(r.model, "freeze", ()) else whole
    share = 0.25 if r.checkpointing else 1.0
    share *= 0.5 if r.precision == "bf16" else 1.0
    activations = int(r.batch.micro * 64 * MIB * share * (r.data.crop / 28) ** 2)
    unit = min(MIB, r.strategy.unit) if isinstance(r.strategy, FSDP) else 0
    sizes = Sizes(trains, whole - trains, unit=unit, buffers=0, moments=(Moment(activations, 16 * unit, trains),))
    return estimate(sizes, r, world).on(device)


def test_settings_that_leave_the_result_alone_come_first_then_the_largest() -> None:
    three = found(recipe(ema=Ema()))
    assert [s.option for s in three] == ["--set checkpointing=true", "--set precision=bf16", "--set data.crop=21"]
    assert three[1].bytes_ == 16 * 64 * MIB / 2
    assert [s.result for s in three] == [False, False, True]


def test_what_is_done_already_is_not_advised() -> None:
    done = recipe(checkpointing=True, precision="bf16", ema=Ema())
    assert options(done) == ["--set model.freeze=*", "--set ema=null", "--set data.crop=21"]
    assert found(done)[0].bytes_ == 300 * MIB  # gradients and two slots of AdamW
    frozen = replace(done, model=Timm(name="x", classes=2, freeze=("*",)), optim=SGD(lr=1.0, momentum=0.0), ema=None)
    assert options(frozen) == ["--set data.crop=21"]


def test_several_ranks_can_share_the_state() -> None:
    done = recipe(checkpointing=True, precision="bf16")
    assert "--strategy fsdp" not in options(done)
    assert options(done, world=4)[0] == "--strategy fsdp"
    assert "--strategy fsdp" not in options(replace(done, determinism="bits"), world=4)


DONE = recipe(checkpointing=True, precision="bf16")


@pytest.mark.parametrize(
    ("strategy", "first"),
    [
        (FSDP(), ["--set strategy.offload=true", "--set strategy.unit=250000", "--set model.freeze=*"]),
        (ZeRO(stage=1), ["--strategy fsdp", "--set strategy.offload=true", "--set strategy.stage=2"]),
        (ZeRO(stage=2), ["--strategy fsdp", "--set strategy.offload=true", "--set model.freeze=*"]),
        (ZeRO(stage=3), ["--set strategy.offload=true", "--strategy fsdp", "--set model.freeze=*"]),
    ],
)
def test_sharded_runs_are_told_three_settings_too(strategy: FSDP | ZeRO, first: list[str]) -> None:
    assert sorted(options(replace(DONE, strategy=strategy), world=4)) == sorted(first)


def test_offloading_saves_nothing_on_a_cpu() -> None:
    assert "--set strategy.offload=true" in options(replace(DONE, strategy=FSDP()), world=4)
    assert "--set strategy.offload=true" not in options(replace(DONE, strategy=FSDP()), world=4, device="cpu")


def test_gradients_can_be_sent_as_bf16_which_changes_the_result() -> None:
    def sent(r: Recipe) -> int:
        return 8 if r.strategy == FSDP(reduce_dtype="bf16") else 10

    assert savings(replace(DONE, strategy=FSDP()), sent) == [Saving("--set strategy.reduce_dtype=bf16", 2, True)]


def test_what_a_strategy_refuses_is_not_advised() -> None:
    def least_at_stage_3(r: Recipe) -> int:
        return 1 if r.strategy == ZeRO(stage=3) else 10

    second = replace(DONE, strategy=ZeRO(stage=2))
    assert [s.option for s in savings(second, least_at_stage_3)] == ["--set strategy.stage=3"]
    assert savings(replace(second, ema=Ema()), least_at_stage_3) == []


def test_what_a_network_refuses_is_not_advised() -> None:
    def refuses(r: Recipe) -> int:
        if r.data.crop != 28:
            raise AssertionError("Input height (21) doesn't match model (28).")
        return needs(r, 1)

    assert "--set data.crop=21" not in [s.option for s in savings(recipe(checkpointing=True), refuses)]


def test_message_says_what_happened_what_was_done_and_what_would_help() -> None:
    text = spell(Shortage(12, 1, 4, 16, 8), recipe(), found(recipe()))
    head, *lines = text.splitlines()
    assert head.startswith(
        "step 12: 1 of 4 ranks ran out of memory with micro-batches of 16; they hold 8 from here on, 8 a"
    )
    assert "batch.total=64 stays" in head
    assert lines == [
        "  --set checkpointing=true  about 0.8 GiB a rank",
        "  --set precision=bf16  about 0.5 GiB a rank",
        "  --set data.crop=21  about 0.4 GiB a rank (changes the result)",
    ]
    assert spell_one(Saving("--set ema=null", 3 * MIB, True)) == (
        "--set ema=null  about 3.0 MiB a rank (changes the result)"
    )


def test_end_of_the_ladder_is_said() -> None:
    assert spell(Shortage(0, 2, 2, 1, None), recipe(), []).endswith("micro-batches of 1, and there is nothing smaller")
    refused = spell(Shortage(0, 2, 2, 2, None, refused=True), recipe(), [])
    assert refused.endswith("micro-batches of 2, and BatchNorm layers refuse a single sample")
