"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fgtrain.errors import Corrupt
from fgtrain.shards import own


class MovingAverage:
    """Averages of all floating-point parameters and buffers, as far as this rank holds them.

    Decay grows with the number of updates n as (1 + n) / (10 + n), up to `decay`, so that early averages forget the
    initial weights. Source: tf.train.ExponentialMovingAverage, `num_updates`.
    """

    def __init__(self, net: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = {n: t.clone() for n, t in _floats(net).items()}

    @torch.no_grad()
    def update(self, net: torch.nn.Module) -> None:
        """Fold in the network's current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = _floats(net)
        torch._foreach_lerp_(list(self.tensors.values()), [live[n] for n in self.tensors], 1 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Take over saved averages.

        Raises:
            Corrupt: they are not of this network.
        """
        if tensors.keys() != self.tensors.keys():
            raise Corrupt(f"snapshot and moving average differ in {sorted(tensors.keys() ^ self.tensors.keys())[:5]}")
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.updates = updates

    @contextmanager
    def applied(self, net: torch.nn.Module) -> Iterator[None]:
        """Put the averages into the network for the length of a `with`, then its own weights back."""
        live = _floats(net)
        kept = {n: t.clone() for n, t in live.items()}
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                live[name].copy_(tensor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in kept.items():
                    live[name].copy_(tensor)


def _floats(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: own(t) for n, t in net.state_dict(keep_vars=True).items() if t.is_floating_point()}
