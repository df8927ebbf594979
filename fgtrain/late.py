"""Values that a device is still computing: read a step late, so that nobody waits for them."""

from __future__ import annotations

from typing import Protocol

import torch


class Late(Protocol):
    """A few numbers that are on their way."""

    def known(self) -> bool:
        """Tell whether they have arrived."""

    def values(self) -> list[float]:
        """Return them; waits, if they have not arrived."""


class Here:
    """Numbers that are there."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def known(self) -> bool:
        """See `Late`."""
        return True

    def values(self) -> list[float]:
        """See `Late`."""
        return self._values


class FromDevice:
    """Numbers that a CUDA stream will have copied to the host, into pinned memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def known(self) -> bool:
        """See `Late`."""
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """See `Late`."""
        self._event.synchronize()
        return list(self._host.tolist())


def late(tensor: torch.Tensor) -> Late:
    """Begin to read a flat tensor."""
    return FromDevice(tensor) if tensor.device.type == "cuda" else Here(tensor.tolist())
