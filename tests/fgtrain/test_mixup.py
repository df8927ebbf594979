"""Mixup is drawn by key and is what its paper says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fgtrain import mixup
from fgtrain.recipe import Mixup
from tests.fgtrain.recipes import recipe

MIXED = recipe(mixup=Mixup(alpha=0.4))


def test_share_follows_from_seed_step_and_micro_batch_alone() -> None:
    draws = [mixup.drawn(MIXED, step, micro) for step in range(3) for micro in range(3)]
    assert draws == [mixup.drawn(MIXED, step, micro) for step in range(3) for micro in range(3)]
    assert len(set(draws)) == 9
    assert mixup.drawn(recipe(), 0, 0) is None


def test_pictures_and_labels_are_blended_alike() -> None:
    x = torch.rand(3, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    labels, blend = torch.tensor([0, 1, 2]), mixup.Blend(0.25)
    mixed = mixup.blended(x, blend)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixed, 0.25 * x + 0.75 * x[[2, 0, 1]])
    logits = torch.randn(3, 5)
    soft = 0.25 * F.one_hot(labels, 5) + 0.75 * F.one_hot(labels[[2, 0, 1]], 5)
    expected = F.cross_entropy(logits, soft, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(mixup.loss(logits, labels, blend, 0.1), expected)


def test_without_mixup_nothing_is_touched() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert mixup.blended(x, None) is x
    assert mixup.loss(torch.zeros(2, 5), torch.tensor([0, 1]), None, 0.0).item() == pytest.approx(
        2 * torch.log(torch.tensor(5.0)).item()
    )
