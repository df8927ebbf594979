"""The state of a training run: everything that the next step depends on, as tensors and JSON values.

By name, a state is the same under every strategy; what differs is how much of each tensor a rank holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fgtrain.ema import MovingAverage
from fgtrain.errors import Corrupt
from fgtrain.shards import Entry, entry, fill, part

Tensors = dict[str, dict[str, Entry]]


class State:
    """Network, optimizer, scaler, moving average, and where the run stands (`step`, `best`).

    Attributes:
        lockstep: whether each pass through the network involves all ranks, so that they must make as many.
        whole: whether each rank holds all of it.
    """

    lockstep = False
    whole = True

    def __init__(
        self,
        net: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: MovingAverage | None,
    ) -> None:
        self.net = net
        self.optimizer = optimizer
        self.scaler = scaler
        self.ema = ema
        self.step = 0
        self.evaluated = 0  # steps done when it was last evaluated
        self.best: dict[str, float] = {}
        self.bad_images: dict[str, str] = {}
        self._names: dict[torch.Tensor, str] = {p: n for n, p in net.named_parameters()}

    # -- out ------------------------------------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """Return the live tensors by group; weights come first by name, then optimizer state, then averages."""
        frozen: dict[str, Entry] = {}
        trained: dict[str, Entry] = {}
        parameters = dict(self.net.named_parameters())
        for name, t in self.net.state_dict(keep_vars=True).items():
            still = name in parameters and not parameters[name].requires_grad
            (frozen if still else trained)[f"model/{name}"] = self._weight(name, t)
        groups: Tensors = {"frozen": frozen, "model": trained, "optim": self._moments()}
        if self.ema:
            live = self.net.state_dict(keep_vars=True)
            groups["ema"] = {f"ema/{n}": entry(live[n], t) for n, t in self.ema.tensors.items()}
        return {g: t for g, t in groups.items() if t}

    def _weight(self, name: str, tensor: torch.Tensor) -> Entry:
        """Return a live parameter or buffer as this rank has it."""
        return entry(tensor)

    def _moments(self) -> dict[str, Entry]:
        """Return the tensors of the optimizer."""
        return {
            f"optim/{self._names[p]}/{k}": entry(v)
            for p, slots in self.optimizer.state.items()
            for k, v in slots.items()
            if isinstance(v, torch.Tensor)
        }

    def _plain_slots(self) -> dict[str, dict[str, Any]]:
        """Return what of the optimizer's state is not a tensor, by parameter."""
        return {
            self._names[p]: {k: v for k, v in s.items() if not isinstance(v, torch.Tensor)}
            for p, s in self.optimizer.state.items()
        }

    def buffers(self) -> set[str]:
        """Return the names of the tensors that a forward pass may change."""
        return {f"model/{n}" for n, _ in self.net.named_buffers()}

    def values(self) -> dict[str, Any]:
        """Return what is not a tensor."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "best": self.best,
            "bad_images": self.bad_images,
            "optim": {"slots": self._plain_slots(), "groups": groups},
            "scaler": self.scaler.state_dict(),
            "ema": {"updates": self.ema.updates} if self.ema else None,
        }

    # -- in -------------------------------------------------------------------------------------------------------

    def load(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Take over a state, given whole.

        Raises:
            Corrupt: a component is missing, unknown, or of another shape.
        """
        self._load_weights({n[6:]: t for n, t in tensors.items() if n.startswith("model/")})
        self._load_optimizer({n[6:]: t for n, t in tensors.items() if n.startswith("optim/")}, values["optim"])
        self.scaler.load_state_dict(values["scaler"])
        if self.ema:
            if values["ema"] is None:
                raise Corrupt("the snapshot has no moving average, and the recipe asks for one")
            live = self.net.state_dict(keep_vars=True)
            saved = {n[4:]: t for n, t in tensors.items() if n.startswith("ema/")}
            mine = {n: part(t, entry(live[n])) if n in live else t for n, t in saved.items()}
            self.ema.load(mine, values["ema"]["updates"])
        self.step = values["step"]
        self.evaluated = values.get("evaluated", values["step"])  # before this was kept, none was left out
        self.best = values["best"]
        self.bad_images = values["bad_images"]

    def _load_weights(self, saved: dict[str, torch.Tensor]) -> None:
        live = self.net.state_dict(keep_vars=True)
        if saved.keys() != live.keys():
            raise Corrupt(f"snapshot and network differ in {sorted(saved.keys() ^ live.keys())[:5]}")
        for name, tensor in live.items():
            if tensor.shape != saved[name].shape:
                raise Corrupt(f"{name}: {tuple(saved[name].shape)} in the snapshot, {tuple(tensor.shape)} here")
        self.take_weights(saved)

    def take_weights(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over weights, given whole, by their names in the network; the others stay."""
        live = self.net.state_dict(keep_vars=True)
        for name, tensor in saved.items():
            fill(live[name], tensor)

    def _load_optimizer(self, saved: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Rebuild torch's own form of optimizer state, which numbers parameters; what was absent stays absent."""
        parameters = dict(self.net.named_parameters())
        slots = by_parameter(saved, values)
        for name, some in slots.items():
            some |= {k: _laid_out(t, parameters.get(name)) for k, t in some.items() if isinstance(t, torch.Tensor)}
        own = self.optimizer.state_dict()
        numbers = [i for g in own["param_groups"] for i in g["params"]]
        live = [p for g in self.optimizer.param_groups for p in g["params"]]
        ids = {self._names[p]: i for p, i in zip(live, numbers, strict=True)}
        if unknown := slots.keys() - ids.keys():
            raise Corrupt(f"the snapshot's optimizer knows parameters that train no more: {sorted(unknown)[:5]}")
        groups = [g | _ways_of(o) for g, o in zip(values["groups"], own["param_groups"], strict=True)]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        self.optimizer.load_state_dict({"state": {ids[n]: s for n, s in slots.items()}, "param_groups": groups})


def _ways_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return what of an optimizer's group is not state: its parameters' numbers, and which kernels it uses."""
    return {k: v for k, v in group.items() if k in ("params", "fused", "foreach")}


def by_parameter(saved: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return saved optimizer state as parameter -> slot -> tensor or plain value."""
    slots: dict[str, dict[str, Any]] = {n: dict(s) for n, s in values["slots"].items()}
    for path, tensor in saved.items():
        name, slot = path.rsplit("/", 1)
        slots.setdefault(name, {})[slot] = tensor
    return slots


def _laid_out(slot: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
    """Copy optimizer state to lie in memory as its parameter does (channels-last, say): fused kernels rely on that."""
    if parameter is None or slot.shape != parameter.shape:
        return slot.clone()
    laid_out = torch.empty_like(parameter, dtype=slot.dtype, device=parameter.device, requires_grad=False)
    fill(laid_out, slot)
    return laid_out
