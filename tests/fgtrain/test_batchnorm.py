"""Running statistics do not depend on who computed which micro-batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fgtrain.batchnorm import RunningStatistics
from fgtrain.reduction import Mailed
from fgtrain.state import State
from tests.fgtrain.recipes import recipe

MICRO_BATCHES = [torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))


def take_step(nets: list[torch.nn.Module], shares: list[list[int]]) -> None:
    """What the ranks of a world do together, each with its micro-batches."""
    norms = [RunningStatistics(n) for n in nets]
    for rank, mine in enumerate(shares):
        norms[rank].begin_step()
        for number in mine:
            nets[rank](MICRO_BATCHES[number])
            norms[rank].end_micro_batch(1.0)
    mail = torch.stack([n.flat_sum() for n in norms]).sum(0)
    for n in norms:
        n.end_step(mail.clone(), len(MICRO_BATCHES))


@pytest.mark.parametrize("shares", [[[0], [1, 2]], [[0], [1], [2]]], ids=str)
def test_any_world_ends_a_step_where_one_process_does(shares: list[list[int]]) -> None:
    alone = net()
    world = [copy.deepcopy(alone) for _ in shares]
    for _ in range(2):
        take_step([alone], [[0, 1, 2]])
        take_step(world, shares)
    for member in world:
        for name, buffer in member.named_buffers():
            torch.testing.assert_close(buffer, alone.get_buffer(name))


def test_a_step_ends_at_the_mean_of_where_its_micro_batches_led() -> None:
    whole = net()
    led = [copy.deepcopy(whole) for _ in MICRO_BATCHES]
    for member, micro_batch in zip(led, MICRO_BATCHES, strict=True):
        member(micro_batch)
    take_step([whole], [[0, 1, 2]])
    for name in ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var"):
        torch.testing.assert_close(whole.get_buffer(name), torch.stack([m.get_buffer(name) for m in led]).mean(0))
    assert whole.get_buffer("0.num_batches_tracked") == 1


def test_network_without_batchnorm_has_nothing_to_agree_on() -> None:
    plain = RunningStatistics(torch.nn.Linear(2, 2))
    plain.begin_step()
    plain.end_micro_batch(1.0)
    plain.end_step(plain.flat_sum(), 1)
    assert plain.flat_sum().shape == (0,)


def test_network_without_batchnorm_exchanges_on_its_own_device() -> None:
    """Tensors without contents say where they are, and complain of company from elsewhere as a GPU's do."""
    with FakeTensorMode():
        net = nn.Linear(2, 2, device="meta")
        state = State(net, torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False), None)
        reduction = Mailed(recipe(), state)
        reduction.begin_mail()
        reduction.exchange(torch.zeros(3, device="meta"))
        reduction.drop_step()
