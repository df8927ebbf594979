"""What differs between the weights of two snapshots, reading no more than what may differ."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from fgtrain.errors import UserError
from fgtrain.lineage import WEIGHTS
from fgtrain.manifest import Manifest, TensorSpan
from fgtrain.runstore import RunStore
from fgtrain.tensorbytes import TensorBytes, import_numpy, stretches


class TensorDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A weight tensor that differs. `what`: "absent in A", "absent in B", "shape", "dtype" or "values".

    `max_abs`: the greatest |a - b|, None where that makes no sense, or where numpy is not installed.
    """

    name: str
    what: str
    max_abs: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two snapshots' weights side by side: `tensors` in either, those that differ, bytes that both refer to."""

    tensors: int
    differ: tuple[TensorDifference, ...]
    bytes_shared: int
    bytes_a: int
    bytes_b: int

    @property
    def same(self) -> bool:
        """Whether the weights are the same, bit for bit."""
        return not self.differ


def compare(a: tuple[RunStore, Manifest], b: tuple[RunStore, Manifest]) -> Comparison:
    """Compare the weights (and their moving averages) of two snapshots.

    Raises:
        Corrupt: a chunk does not verify.
        StoreUnavailable: worth another try.
    """
    chunks_a, chunks_b = a[1].chunks(), b[1].chunks()
    either = sorted(a[1].tensors.keys() | b[1].tensors.keys(), key=lambda n: (n.startswith("ema/"), n))
    names = [n for n in either if n.split("/")[0] in WEIGHTS]
    reader_a, reader_b = TensorBytes(*a), TensorBytes(*b)
    found = (_difference(name, a[1], b[1], reader_a, reader_b) for name in names)
    return Comparison(
        tensors=len(names),
        differ=tuple(d for d in found if d is not None),
        bytes_shared=sum(chunks_a[c] for c in chunks_a.keys() & chunks_b.keys()),
        bytes_a=sum(chunks_a.values()),
        bytes_b=sum(chunks_b.values()),
    )


def _difference(
    name: str, a: Manifest, b: Manifest, reader_a: TensorBytes, reader_b: TensorBytes
) -> TensorDifference | None:
    """Tell how a tensor differs; one that lies alike in the same chunks is not read."""
    one, other = a.tensors.get(name), b.tensors.get(name)
    if one is None or other is None:
        return TensorDifference(name=name, what=f"absent in {'A' if one is None else 'B'}")
    if one.shape != other.shape:
        return TensorDifference(name=name, what="shape")
    if one.dtype != other.dtype:
        return TensorDifference(name=name, what="dtype")
    if one.order == other.order and list(stretches(a, one)) == list(stretches(b, other)):
        return None
    left, right = reader_a.read(name), reader_b.read(name)
    if left == right:
        return None
    return TensorDifference(name=name, what="values", max_abs=greatest_difference(left, right, one))


def greatest_difference(a: bytes, b: bytes, span: TensorSpan) -> float | None:
    """Return the greatest |a - b| of two tensors' bytes; infinity where a NaN meets a number."""
    try:
        numpy = import_numpy()
    except UserError:
        return None
    left, right = _values(numpy, a, span.dtype), _values(numpy, b, span.dtype)
    if left is None or right is None:
        return None
    with numpy.errstate(invalid="ignore"):
        apart = numpy.where((left == right) | (numpy.isnan(left) & numpy.isnan(right)), 0.0, numpy.abs(left - right))
    greatest = float(apart.max())
    return math.inf if math.isnan(greatest) else greatest


def _values(numpy: Any, data: bytes, dtype: str) -> Any:
    """Return a tensor's values as float64; None for types that numpy does not have."""
    if dtype == "bfloat16":  # the upper half of a float32
        wide = numpy.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype("f8")
    if dtype.startswith(("float8", "complex")):
        return None
    return numpy.frombuffer(data, numpy.dtype(dtype).newbyteorder("<")).astype("f8")
