"""State out and in again: what follows is what would have followed without."""

from __future__ import annotations

import copy

import pytest
import torch

from fgtrain.data.digits import Digits
from fgtrain.models.timm import Timm
from fgtrain.optimizer import build_optimizer
from fgtrain.recipe import SGD, Adam, AdamW, Batch, Recipe
from fgtrain.state import State


def make_state(optim: SGD | Adam | AdamW) -> State:
    recipe = Recipe(
        model=Timm(name="test_resnet", classes=3), data=Digits(), optim=optim, batch=Batch(total=2, micro=2), epochs=1
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return State(net, build_optimizer(recipe, net), torch.amp.GradScaler("cpu", enabled=False), None)


def take_steps(state: State, count: int) -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for _ in range(count):
        state.optimizer.zero_grad()
        state.net(images).square().sum().backward()
        state.optimizer.step()


@pytest.mark.parametrize("optim", [SGD(lr=1e-3, weight_decay=0.1), Adam(lr=1e-2), AdamW(lr=1e-2)], ids=repr)
def test_a_channels_last_run_goes_on_from_a_snapshot_as_if_never_interrupted(optim: SGD | Adam | AdamW) -> None:
    whole, before, after = (make_state(optim) for _ in range(3))
    take_steps(whole, 5)
    take_steps(before, 2)
    stored = {
        n: t.detach().clone(memory_format=torch.contiguous_format)
        for g in before.tensors().values()
        for n, t in g.items()
    }
    after.load(stored, copy.deepcopy(before.values()))
    take_steps(after, 3)
    for ours, theirs in zip(after.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
