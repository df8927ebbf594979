"""Networks by how many heads they have."""

from __future__ import annotations

import pytest
import torch

from fgtrain.errors import UserError
from fgtrain.freeze import train_mode
from fgtrain.models.timm import Timm

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_resnet", {"fc"}),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("efficientvim_m1_dist", {"heads", "heads_dist"}),
    ],
)
def test_all_heads_train_and_give_one_score_a_class(name: str, heads: set[str]) -> None:
    """Of two, that are there to be distilled through, timm returns the mean, unless it is told otherwise."""
    pictures_NCHW = torch.empty(2, 3, 224, 224, device="meta")
    with torch.device("meta"):
        net = Timm(name=name, classes=7, freeze=("*",)).build()
    trained = {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == heads
    train_mode(net)
    assert net(pictures_NCHW).shape == (2, 7)
    assert net.eval()(pictures_NCHW).shape == (2, 7)


def test_encoder_is_refused() -> None:
    with torch.device("meta"), pytest.raises(UserError, match="model.name=qwen3_vit_88m_enc: it is no classifier"):
        Timm(name="qwen3_vit_88m_enc", classes=7).build()
