"""Compiling parts of a network in place."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.utils import counters

from fgtrain.compiled import compile_in_place, uncompiled


def test_names_and_hooks_stay_and_passes_that_are_few_run_as_ever() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names, seen = list(net.state_dict()), list[int]()
    net.register_forward_hook(lambda *_: seen.append(1))
    x = torch.ones(3, 2)
    expected = net(x)
    torch._dynamo.reset()
    counters.clear()
    compile_in_place([net])
    with uncompiled(compiles=True):
        assert torch.equal(net(x), expected)
    assert not counters["frames"]
    assert list(net.state_dict()) == names
    assert len(seen) == 2
