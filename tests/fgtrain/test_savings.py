"""What is said of a shortage of memory."""

from __future__ import annotations

from fgtrain.ladder import Shortage
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Ema
from fgtrain.savings import Footprint, savings, spell
from tests.fgtrain.recipes import recipe

MIB = 1 << 20
FOOTPRINT = Footprint(parameters=100 * MIB, trained=100 * MIB, activations=64 * MIB)


def test_settings_that_leave_the_result_alone_come_first_then_the_largest() -> None:
    found = savings(recipe(ema=Ema()), FOOTPRINT, 16, 1, bf16=False)
    assert [s.option for s in found] == ["--set checkpointing=true", "--set precision=bf16", "--set data.crop=21"]
    assert found[1].bytes_ == 16 * 64 * MIB / 2
    assert [s.result for s in found] == [False, False, True]


def test_what_is_done_already_is_not_advised() -> None:
    found = savings(recipe(checkpointing=True, ema=Ema()), FOOTPRINT, 1, 1, bf16=True)
    assert [s.option for s in found] == ["--set model.freeze=*", "--set ema=null", "--set data.crop=21"]
    assert found[0].bytes_ == 300 * MIB  # gradients and two slots of AdamW
    frozen = recipe(model=Timm(name="x", classes=2, freeze=("*",)), optim=SGD(lr=1.0, momentum=0.0), checkpointing=True)
    assert [s.option for s in savings(frozen, FOOTPRINT, 1, 1, bf16=True)] == ["--set data.crop=21"]


def test_several_ranks_can_share_the_state() -> None:
    alone = savings(recipe(), FOOTPRINT, 1, 1, bf16=True)
    four = savings(recipe(), FOOTPRINT, 1, 4, bf16=True)
    assert "--strategy fsdp" not in [s.option for s in alone]
    assert (four[0].option, four[0].bytes_) == ("--strategy fsdp", 300 * MIB)  # three quarters of weights to moments
    assert "--strategy fsdp" not in [s.option for s in savings(recipe(determinism="bits"), FOOTPRINT, 1, 4, bf16=True)]


def test_message_says_what_happened_what_was_done_and_what_would_help() -> None:
    text = spell(Shortage(12, 1, 4, 16, 8), recipe(), savings(recipe(), FOOTPRINT, 16, 1, bf16=False))
    head, *lines = text.splitlines()
    assert head.startswith(
        "step 12: 1 of 4 ranks ran out of memory with micro-batches of 16; they hold 8 from here on, 8 a"
    )
    assert "batch.total=64 stays" in head
    assert lines == [
        "  --set checkpointing=true  about 0.7 GiB a rank",
        "  --set precision=bf16  about 0.5 GiB a rank",
        "  --set data.crop=21  about 0.4 GiB a rank (changes the result)",
    ]


def test_end_of_the_ladder_is_said() -> None:
    assert spell(Shortage(0, 2, 2, 1, None), recipe(), []).endswith("micro-batches of 1, and there is nothing smaller")
