"""The toy's state: numbers of every dtype that walk a known way, so that each step's bytes are known."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

LATE = 6  # a tensor that only appears after so many steps, as an optimizer's state may
WRONG = "wrong"


class Walk(NamedTuple):
    """Element i after s steps: (a * i + b * s) mod m."""

    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    a: int
    b: int
    m: int
    born: int = 0

    def at(self, step: int) -> torch.Tensor:
        """Return the tensor after a number of steps."""
        count = torch.Size(self.shape).numel()
        flat = (torch.arange(count, dtype=torch.int64) * self.a + self.b * step) % self.m
        t = flat.reshape(self.shape).to(self.dtype)
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


WALKS = {
    "model/backbone": Walk("frozen", (200_000,), torch.float32, 3, 0, 251),
    "model/w": Walk("model", (110_000,), torch.float32, 5, 7, 251),
    "model/conv": Walk("model", (4, 16, 30, 30), torch.float32, 11, 3, 241),
    "model/running": Walk("model", (500,), torch.float32, 1, 13, 239),
    "model/count": Walk("model", (), torch.int64, 0, 1, 2**31),
    "optim/m": Walk("optim", (60_000,), torch.int64, 17, 5, 1009),
    "optim/flags": Walk("optim", (333,), torch.bool, 1, 1, 2),
    "optim/q": Walk("optim", (777,), torch.int8, 3, 5, 127),
    "optim/none": Walk("optim", (0, 3), torch.float32, 1, 1, 2),
    "optim/late": Walk("optim", (300_000,), torch.bfloat16, 7, 9, 241, born=LATE),
}
BUFFERS = {"model/running"}


class ToyState:
    """Tensors and the step they are of; `control` takes it for a `fgtrain.state.State`."""

    def __init__(self) -> None:
        self.step = 0
        self.live = {n: w.at(0) for n, w in WALKS.items() if w.born == 0}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, t in self.live.items():
            groups.setdefault(WALKS[name].group, {})[name] = t
        return groups

    def values(self) -> dict[str, Any]:
        return {"step": self.step, "square": self.step**2}

    def load(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        self.step = values["step"]
        self.live = {n: t.clone() for n, t in tensors.items()}

    def forward(self) -> None:
        """What a forward pass changes: the buffers."""
        for name in BUFFERS:
            self._walk(name)

    def update(self, moved: int) -> None:
        """What the optimizer changes, `moved` steps (all ranks' gradients together make one)."""
        for name in self.live:
            if name not in BUFFERS and WALKS[name].b:
                self._walk(name, moved)
        self.step += moved
        for name, walk in WALKS.items():
            if walk.born == self.step and name not in self.live:
                self.live[name] = walk.at(self.step)

    def _walk(self, name: str, moved: int = 1) -> None:
        t, walk = self.live[name], WALKS[name]
        if t.dtype is torch.bool:
            t.logical_not_() if moved % 2 else None
        elif t.dtype is torch.int8:  # 126 + 5 would not fit
            t.copy_((t.to(torch.int16) + walk.b * moved) % walk.m)
        else:
            t.add_(walk.b * moved).remainder_(walk.m)


def problem(state: ToyState) -> str | None:
    """Return in what a state differs from what it must be at its step, None if it is right."""
    if state.values()["square"] != state.step**2:
        return "values"
    wanted = {n: w.at(state.step) for n, w in WALKS.items() if w.born <= state.step}
    if wanted.keys() != state.live.keys():
        return f"names {sorted(wanted.keys() ^ state.live.keys())}"
    for name, t in wanted.items():
        live = state.live[name]
        if live.dtype != t.dtype or live.shape != t.shape or live.stride() != t.stride() or not torch.equal(live, t):
            return f"{name} at step {state.step}"
    return None
