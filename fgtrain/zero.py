"""ZeRO through DeepSpeed's engine.

DeepSpeed lays parameters end to end, cuts them at the ranks' borders, and hands the pieces to the optimizer as if each
were one parameter. Here they get their names back: a snapshot does not show who made it.

The engine is made when training is about to start, from weights that were loaded whole; moments are cut to pieces then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fgtrain.build import build_net
from fgtrain.compiled import compile_in_place
from fgtrain.ema import MovingAverage
from fgtrain.errors import Corrupt, UserError
from fgtrain.optimizer import build_optimizer, build_scaler, computes_in
from fgtrain.place import Place, ensure_group
from fgtrain.plan import Plan
from fgtrain.recipe import Recipe, replace
from fgtrain.reduction import Mailed
from fgtrain.shards import Entry, Sharded
from fgtrain.state import State, by_parameter
from fgtrain.strategies.zero import BUCKET_ELEMENTS, LIVE_ELEMENTS, ZeRO


def engine_config(strategy: ZeRO, recipe: Recipe, place: Place) -> dict[str, Any]:
    """Return DeepSpeed's configuration. The global batch, the rate and the schedule are not its affair."""
    zero: dict[str, Any] = {
        "stage": strategy.stage,
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if strategy.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_max_live_parameters": LIVE_ELEMENTS,
            "stage3_max_reuse_distance": LIVE_ELEMENTS,
        }
    if strategy.offload:
        host = {"device": "cpu", "pin_memory": place.device.type == "cuda"}
        zero |= {"offload_optimizer": host} | ({"offload_param": host} if strategy.stage == 3 else {})
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for its own counting
        "gradient_accumulation_steps": 1,  # the engine is told when the last micro-batch comes
        "gradient_clipping": recipe.clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        # No module is "safe": gradients are summed as fp32, as everywhere else.
        "torch_autocast": {
            "enabled": computes_in(recipe, place.device) == torch.bfloat16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def import_deepspeed() -> Any:
    """Import DeepSpeed.

    Raises:
        UserError: it is not installed, or does not import.
    """
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise UserError(f"strategy=zero needs DeepSpeed ({error}): pip install 'fglaunch[deepspeed]'") from error
    compatible: dict[str, bool] = getattr(deepspeed.ops, "__compatible_ops__", {})
    if not torch.cuda.is_available():
        compatible["deepspeed_shm_comm"] = False  # else it is compiled, for minutes, when the engine starts
    return deepspeed


class Piece(NamedTuple):
    """What this rank has of one parameter: `elements` from `start` on, which are at `at` of a flat fp32 tensor."""

    name: str
    shape: tuple[int, ...]
    flat: torch.Tensor
    at: int
    elements: int
    start: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return this parameter's elements of a tensor laid out as `flat` is."""
        return flat.detach().narrow(0, self.at, self.elements)


class ZeroState(State):
    """A state whose optimizer is handed over to an engine before the first step."""

    lockstep = True
    whole = False

    def __init__(
        self,
        place: Place,
        net: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: MovingAverage | None,
    ) -> None:
        super().__init__(net, optimizer, scaler, ema)
        self._place = place
        self._shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._pieces: dict[str, Piece] = {}
        self._split = False  # parameters too

    def hand_over(self, zero: Any, stage: int) -> None:
        """Go on with DeepSpeed's optimizer, which has taken over the weights, and with the moments that were loaded."""
        names = {p: n for n, p in self.net.named_parameters()}
        self._pieces = {p.name: p for p in (_third if stage == 3 else _first_two)(zero, names, self._place)}
        self._split = stage == 3
        if self._loaded:
            _install(self._loaded, self.optimizer, list(self._pieces.values()))
        self._loaded = {}

    def _entry(self, local: torch.Tensor, name: str, start: int) -> Entry:
        shape = self._shapes[name]
        return local.view(shape) if self._place.size == 1 else Sharded(local, shape, start)

    def _weight(self, name: str, tensor: torch.Tensor) -> Entry:
        if not self._split or name not in self._shapes:
            return tensor
        if name in self._pieces:
            piece = self._pieces[name]
            return self._entry(piece.of(piece.flat), name, piece.start)
        start, count = _partition(tensor, self._place)
        return self._entry(tensor.ds_tensor.detach().view(-1)[:count], name, start)  # type: ignore[attr-defined]

    def _moments(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name, piece in self._pieces.items():
            for slot, t in self.optimizer.state.get(piece.flat, {}).items():
                if isinstance(t, torch.Tensor):
                    own = t.shape == piece.flat.shape
                    found[f"optim/{name}/{slot}"] = self._entry(piece.of(t), name, piece.start) if own else t
        return found

    def _plain_slots(self) -> dict[str, dict[str, Any]]:
        return {
            name: {k: v for k, v in slots.items() if not isinstance(v, torch.Tensor)}
            for name, piece in self._pieces.items()
            if (slots := self.optimizer.state.get(piece.flat))
        }

    def _load_optimizer(self, saved: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        self._loaded = by_parameter(saved, values)
        if unknown := self._loaded.keys() - {n for n, p in self.net.named_parameters() if p.requires_grad}:
            raise Corrupt(f"the snapshot's optimizer knows parameters that train no more: {sorted(unknown)[:5]}")


class ZeroEngine(Mailed):
    """DeepSpeed's engine, which sums, clips and applies.

    With `compile`, kernels are made for the network in it, not for the engine around it.
    """

    collective = True
    compiled = True

    def __init__(self, strategy: ZeRO, recipe: Recipe, plan: Plan, place: Place, state: ZeroState) -> None:
        super().__init__(recipe, state)
        deepspeed = import_deepspeed()
        os.environ.setdefault("LOCAL_RANK", str(place.local_rank))  # it asks for it, alone or not
        self.net, *_ = deepspeed.initialize(
            model=state.net,
            optimizer=state.optimizer,
            config=engine_config(strategy, recipe, place),
            dist_init_required=False,
        )
        state.hand_over(self.net.optimizer, strategy.stage)
        if recipe.compile:
            compile_in_place([state.net])
        self.loss_scale = float(place.size)  # the engine takes the mean over ranks where the step needs the sum
        self._most = -(-plan.micro_batches // place.size)
        self._made = 0
        self.divide(1)

    def divide(self, parts: int) -> None:
        """See `Reduction`."""
        self._passes = self._most * parts

    def begin_step(self) -> None:
        """Forget the last step; its gradients are forgotten already."""
        self.begin_mail()
        self._made = 0

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Sum the gradients of what runs inside, over ranks where the stage asks for it."""
        self._made += 1
        self.net.set_gradient_accumulation_boundary(self._made == self._passes)
        yield
        self.end_micro_batch(filled=filled)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Reduction`."""
        self.net.backward(loss, scale_wrt_gas=False)

    def update(self, lr: float) -> None:
        """See `Reduction`."""
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr
        self.net.step()


def build_zero(strategy: ZeRO, recipe: Recipe, place: Place) -> ZeroState:
    """Make the state that a run starts from; all ranks call together. Weights lie in C order, as pieces are runs of it.

    Raises:
        UserError: DeepSpeed cannot be had.
    """
    import_deepspeed()
    ensure_group(place)
    net = build_net(replace(recipe, channels_last=False), place.device)
    ema = MovingAverage(net, recipe.ema.decay) if recipe.ema else None
    return ZeroState(place, net, build_optimizer(recipe, net), build_scaler(recipe, place.device), ema)


def _first_two(zero: Any, names: Mapping[torch.nn.Parameter, str], place: Place) -> Iterator[Piece]:
    """Yield what this rank has of every parameter that trains, at stage 1 or 2."""
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        for p in group:
            if (there := p._hp_mapping) is None:
                yield Piece(names[p], tuple(p.shape), flat, 0, 0, 0)
            else:
                at, start = there.hp_fragment_address, there.lp_fragment_address.start
                yield Piece(names[p], tuple(p.shape), flat, at.start, at.numel, start)


def _third(zero: Any, names: Mapping[Any, str], place: Place) -> Iterator[Piece]:
    """Yield what this rank has of every parameter that trains, at stage 3."""
    for p, name in names.items():
        if p.requires_grad:
            group, at, _ = zero.grad_position[zero.get_param_id(p)]
            start, count = _partition(p, place)
            yield Piece(name, tuple(p.ds_shape), zero.fp32_partitioned_groups_flat[group], at, count, start)


def _partition(parameter: Any, place: Place) -> tuple[int, int]:
    """Return the first element that this rank has of a parameter at stage 3, and how many."""
    whole, each = parameter.ds_numel, parameter.partition_numel()
    start = min(place.rank * each, whole)
    return start, min(each, whole - start)


def _install(loaded: Mapping[str, dict[str, Any]], optimizer: torch.optim.Optimizer, pieces: Sequence[Piece]) -> None:
    """Give the flat tensors the optimizer state that was saved by parameter.

    Raises:
        UserError: parameters that were not updated equally often, where there is one count for all.
    """
    for piece in pieces:
        slots = optimizer.state[piece.flat]
        for slot, saved in loaded.get(piece.name, {}).items():
            if not isinstance(saved, torch.Tensor):
                slots.setdefault(slot, saved)
            elif tuple(saved.shape) == piece.shape:
                if slot not in slots:
                    slots[slot] = torch.zeros_like(piece.flat, requires_grad=False)
                piece.of(slots[slot]).copy_(saved.contiguous().view(-1)[piece.start : piece.start + piece.elements])
            elif slot not in slots:
                slots[slot] = saved.to(piece.flat.device, copy=True)
            elif not torch.equal(slots[slot].cpu(), saved.cpu()):
                raise UserError(
                    f"strategy=zero keeps one {slot} for all parameters, and {piece.name} has another than the rest:"
                    " it is not used in every step; --strategy ddp or fsdp"
                )
