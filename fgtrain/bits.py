"""`determinism="bits"`: gradients and running statistics summed by one fixed tree, and kernels that repeat themselves.

Each micro-batch gives one leaf: its gradients, and the running statistics of BatchNorm after it. The tree over the
leaves depends on nothing but their number (`fgtrain.tree`), so one process and eight, at even or uneven shares, add the
same pairs. What a leaf is must not depend on the world either: see `settle_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist

from fgtrain.batchnorm import RunningStatistics
from fgtrain.buckets import Bucket, cut
from fgtrain.errors import UserError
from fgtrain.place import Place, agree, agreeing
from fgtrain.recipe import Recipe
from fgtrain.reduction import Applied
from fgtrain.state import State


def settle_kernels() -> None:
    """Have every kernel of this process give the same bits for the same inputs.

    On the CPU, kernels split their sums by the number of threads: it is 1, whatever the environment says, as any other
    fixed number would be wrong on some machine. On CUDA, the agent also sets CUBLAS_WORKSPACE_CONFIG.
    Source: PyTorch documentation, "Reproducibility".
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs a pass over memory
    torch.backends.cudnn.benchmark = False


class FixedTree(Applied):
    """Sums by the tree; ranks exchange their partial sums during the last micro-batch's backward."""

    collective = False
    loss_scale = 1.0

    def __init__(self, recipe: Recipe, state: State, place: Place, shares: Sequence[range]) -> None:
        """Take a state that is the same on every rank; `shares` are the ranks' micro-batches."""
        super().__init__(recipe, state)
        net = state.net
        assert_equal(net, place)
        self.net = net
        self._place, self._whole = place, shares
        self._norms = RunningStatistics(net)
        # Backward gets to the last layers first, so their bucket goes first; statistics join the first layers'.
        self._parameters = [p for p in net.parameters() if p.requires_grad][::-1]
        self._slots = [*self._parameters, *self._norms.live]
        self._ranges = list(cut(self._slots))
        self.divide(1)
        self._guard = _Buffers(net, self._norms.live)
        self._exchanging = False
        if place.size > 1:
            self._watch_backward()

    def divide(self, parts: int) -> None:
        """See `Reduction`: the tree is that of a recipe with such micro-batches."""
        shares = [range(s.start * parts, s.stop * parts) for s in self._whole]
        self._mine = shares[self._place.rank]
        self._buckets: list[Bucket] = []  # free the old ones' memory first
        self._buckets = [Bucket([self._slots[i] for i in r], shares, self._place.rank) for r in self._ranges]

    def begin_step(self) -> None:
        """Forget the last step."""
        super().begin_step()
        self._norms.begin_step()
        self._guard.begin_step()
        for bucket in self._buckets:
            bucket.begin_step()
        self._filled, self._complete = 0, True
        self._used = [False] * len(self._parameters)
        self._sent = 0

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Make a leaf of what runs inside."""
        assert number is not None
        self._leaf = number
        self._collected = [False] * len(self._buckets)
        self._missing = [sum(i < len(self._parameters) for i in r) for r in self._ranges]
        self._exchanging = self._place.size > 1 and number == self._mine[-1]
        yield
        self._exchanging = False
        statistics = self._norms.take()
        if not filled:
            torch._foreach_zero_(statistics) if statistics else None
        self._filled += filled
        for b, collected in enumerate(self._collected):
            if not collected:
                self._collect(b, statistics)

    def exchange(self, mail: torch.Tensor) -> None:
        """Finish the exchange of gradients and statistics; `mail` travels among them."""
        self._guard.check()
        self._send_collected()
        n = len(self._parameters)
        own = torch.tensor([self._filled, *self._used], dtype=torch.float32, device=mail.device)
        sums = torch.cat([own, mail])
        arrived = agreeing(sums)
        for bucket in self._buckets:
            bucket.combine()
        totals = [t for bucket in self._buckets for t in bucket.total()] if self._complete else []
        arrived()
        for parameter, total, ranks in zip(self._parameters, totals, sums[1 : n + 1].tolist(), strict=False):
            parameter.grad = total if ranks else None
        self._sums, self._statistics = sums, totals[n:]

    def end_step(self) -> torch.Tensor:
        """Set the running statistics and return the sum of the mail."""
        self._norms.end_step(_flat(self._statistics), float(self._sums[0]))
        return self._sums[len(self._parameters) + 1 :]

    # -- out of memory --------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """See `Reduction`: whatever leaf is missing becomes zeros."""
        self._exchanging = False
        self._norms.go_back()
        for parameter in self._parameters:
            parameter.grad = None
        if self._place.size == 1:
            self._complete = False
            return
        for leaf in range(self._leaf, self._mine.stop):
            for b, slots in enumerate(self._ranges):
                if leaf > self._leaf or not self._collected[b]:
                    zeros = [torch.zeros_like(self._slots[i], requires_grad=False) for i in slots]
                    self._buckets[b].push(leaf, zeros)
        self._collected = [True] * len(self._buckets)

    def drop_step(self) -> None:
        """See `Reduction`."""
        self._statistics = []

    # -- leaves ---------------------------------------------------------------------------------------------------

    def _collect(self, b: int, statistics: Sequence[torch.Tensor] = ()) -> None:
        """Push a bucket's leaf: the gradients that autograd left, and the statistics if it holds them."""
        n = len(self._parameters)
        values = [self._gradient(i) if i < n else statistics[i - n] for i in self._ranges[b]]
        self._buckets[b].push(self._leaf, values)
        self._collected[b] = True

    def _gradient(self, i: int) -> torch.Tensor:
        """Take a parameter's gradient; where this micro-batch did not use it, an exact zero.

        A zero that is added, not left out: it makes +0.0 of -0.0, and must do so in every world.
        """
        parameter = self._parameters[i]
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return torch.zeros_like(parameter, requires_grad=False)
        self._used[i] = True
        return gradient

    # -- overlap with backward ------------------------------------------------------------------------------------

    def _watch_backward(self) -> None:
        n = len(self._parameters)
        for b, slots in enumerate(self._ranges):
            for i in slots:
                if i < n:
                    hook = partial(self._arrived, b)
                    self._parameters[i].register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _arrived(self, b: int, parameter: torch.Tensor) -> None:
        """Note a gradient of the rank's last micro-batch; send its bucket, if it is the last one there."""
        if not self._exchanging:
            return
        self._missing[b] -= 1
        if not self._missing[b] and self._ranges[b][-1] < len(self._parameters):
            self._collect(b)
            self._send_collected()

    def _send_collected(self) -> None:
        """Send buckets in their order, the same on every rank, as far as they are complete."""
        while self._sent < len(self._buckets) and self._collected[self._sent]:
            self._buckets[self._sent].send()
            self._sent += 1


class _Buffers:
    """Watches the buffers that nobody sums: a network that changes them forward is not the same on every rank."""

    def __init__(self, net: torch.nn.Module, known: Sequence[torch.Tensor]) -> None:
        summed = {id(b) for b in known}
        self._buffers = {n: b for n, b in net.named_buffers() if id(b) not in summed and b.is_floating_point()}
        self._versions = [b._version for b in self._buffers.values()]

    def begin_step(self) -> None:
        """Remember where the step starts."""
        self._versions = [b._version for b in self._buffers.values()]

    def check(self) -> None:
        """Compare.

        Raises:
            UserError: a buffer was written to.
        """
        for (name, buffer), version in zip(self._buffers.items(), self._versions, strict=True):
            if buffer._version != version:
                raise UserError(
                    f"determinism=bits: the model changes its buffer {name} as it runs, and only BatchNorm's are known:"
                    " --set determinism=samples"
                )


def assert_equal(net: torch.nn.Module, place: Place) -> None:
    """Check that all ranks hold the same weights, as keyed initialisation and snapshots should have it."""
    if place.size == 1:
        return
    state = net.state_dict()
    sums = torch.stack([_checksum(t) for t in state.values()]) if state else torch.zeros(0, dtype=torch.int64)
    low, high = agree(sums.clone(), dist.ReduceOp.MIN), agree(sums.clone(), dist.ReduceOp.MAX)
    differing = [name for name, same in zip(state, (low == high).tolist(), strict=True) if not same]
    assert not differing, f"ranks begin with different weights: {differing[:5]}"


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    words = torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8
    return tensor.detach().contiguous().reshape(-1).view(words).sum(dtype=torch.int64)


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors]) if tensors else torch.zeros(0)
