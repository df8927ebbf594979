"""`compile=true` under each strategy takes the steps that it takes without, and kernels are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fgtrain.errors import UserError
from fgtrain.fsdp import apart, units
from fgtrain.models import Model
from fgtrain.parts import Part
from fgtrain.place import Place
from fgtrain.recipe import SGD, Batch, Recipe, replace
from fgtrain.strategies import Strategy
from fgtrain.strategies.ddp import DDP
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO
from tests.exactness.left import Left, assert_close, train
from tests.exactness.training import CLASSES, RESNET
from tests.testbed.needs import needs_compiler, needs_deepspeed
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train


class Tiny(Part, Model):
    """A network of two blocks, or of none."""

    name: str = "tiny"
    classes: int = CLASSES
    blocks: int = 2

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4),
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(self.blocks)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, self.classes)),
        )


# Seven micro-batches: one rank makes a pass that counts for nothing. The last step has one, of two samples.
BATCH = Batch(total=28, micro=4)
EAGER = replace(RESNET, determinism="samples", model=Tiny(), optim=SGD(lr=0.05, momentum=0.9), batch=BATCH)
STRATEGIES: dict[str, Strategy] = {
    "ddp": DDP(),
    "fsdp": FSDP(unit=500),
    "zero2": ZeRO(stage=2),
}
EACH = [pytest.param(s, id=n, marks=needs_deepspeed if n.startswith("zero") else ()) for n, s in STRATEGIES.items()]


class Made(NamedTuple):
    """What steps left, and of how many graphs kernels were made for them."""

    left: Left
    graphs: int


def make(place: Place, recipe: Recipe) -> Made:
    """Train a recipe to its end."""
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._inductor.config.compile_threads = 1  # no processes for so little
    torch._dynamo.reset()  # else what was found not to be worth compiling in one recipe is left out in the next
    counters.clear()
    left = train(place, recipe, None, 3)
    return Made(left, counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2, settled=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def eager(ranks: Ranks) -> Left:
    made = ranks.call(2, make, EAGER)[0]
    assert made.graphs == 0
    return made.left


@needs_compiler
@pytest.mark.parametrize("strategy", EACH)
def test_compiled_network_is_trained_as_it_is_without(ranks: Ranks, eager: Left, strategy: Strategy) -> None:
    for made in ranks.call(2, make, replace(EAGER, strategy=strategy, compile=True)):
        assert made.graphs > 0
        assert made.left.losses == pytest.approx(eager.losses, rel=1e-4)
        assert_close(made.left.tensors, eager.tensors)


def test_fsdp_says_so_where_there_is_nothing_to_compile() -> None:
    plain = replace(EAGER, model=Tiny(blocks=0), strategy=FSDP(), compile=True)
    with pytest.raises(UserError, match=r"compile=true: .* blocks, and the model has none: --set compile=false"):
        plain.strategy.build(plain, Place(0, 1, 0, torch.device("cpu")))


def test_blocks_that_are_compiled_are_the_largest_within_which_nothing_is_gathered() -> None:
    block = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    net = nn.Sequential(nn.Sequential(block[0], nn.Sequential(block[1])), block[2])
    outer, inner = net[0], net[0][1]
    assert set(apart(net, [])) == set(apart(net, [outer])) == {outer, block[2]}
    assert set(apart(net, [block[0]])) == {block[0], inner, block[2]}
    assert set(apart(net, units(net, 1))) == set(block)
