"""What FSDP can tell only where it runs: what `precision=auto` is on a device."""

from __future__ import annotations

import pytest
import torch

from fgtrain.errors import UserError
from fgtrain.fsdp import gathers_as, refuse_numbers
from fgtrain.place import Place
from fgtrain.recipe import replace
from fgtrain.strategies.fsdp import FSDP
from tests.fgtrain.recipes import recipe

HERE = Place(0, 1, 0, torch.device("cpu"))
AUTO = recipe(precision="auto", strategy=FSDP(param_dtype="bf16"))


def test_bf16_parameters_are_refused_in_one_line_where_auto_is_fp32() -> None:
    with pytest.raises(UserError) as told:
        AUTO.strategy.build(AUTO, HERE)
    assert "\n" not in str(told.value)
    for part in ("strategy.param_dtype=bf16: precision=auto is fp32", "(cpu)", "--set precision=bf16"):
        assert part in str(told.value)


def test_parameters_that_are_numbers_are_refused_by_name() -> None:
    net = torch.nn.Linear(2, 2)
    refuse_numbers(net)
    for name in ("gain", "skip"):
        net.register_parameter(name, torch.nn.Parameter(torch.ones(())))
    with pytest.raises(UserError, match=r"^strategy=fsdp: .* \(gain and 1 more\): --strategy ddp"):
        refuse_numbers(net)


@pytest.mark.parametrize(
    ("strategy", "precision", "dtype"),
    [
        (FSDP(), "auto", torch.float32),
        (FSDP(), "bf16", torch.bfloat16),
        (FSDP(param_dtype="bf16"), "bf16", torch.bfloat16),
        (FSDP(param_dtype="fp32"), "bf16", torch.float32),
    ],
)
def test_parameters_are_gathered_as_asked_or_as_the_network_computes(
    strategy: FSDP, precision: str, dtype: torch.dtype
) -> None:
    assert gathers_as(strategy, replace(AUTO, precision=precision), HERE.device) == dtype
