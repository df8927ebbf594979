"""Plain values as JSON and back, types kept: what a checkpoint may hold beside tensors, without pickle.

JSON's own types stand for themselves. What JSON cannot hold, or would give back as another type, is an object with
one field that names the type: `{"tuple": [...]}`, `{"dict": [[key, value], ...]}`, `{"float": "nan"}`, ...
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from fgtrain.dcp.names import named, torch_name
from fgtrain.errors import Corrupt, UserError
from fgtrain.snapshot.layout import flat_bytes

_INT64 = 1 << 63  # JSON readers hold no more; NumPy's generators have states of 128 bits


def encode_value(value: Any) -> bytes:
    """Encode a plain value.

    Raises:
        UserError: it holds something that is not plain; names its type and where it sits.
    """
    return msgspec.json.encode(tagged(value))


def decode_value(data: bytes) -> Any:
    """Decode what `encode_value` wrote.

    Raises:
        Corrupt: something else wrote it.
    """
    try:
        return untagged(msgspec.json.decode(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"not a plain value: {error}") from error


def tagged(value: Any, where: str = "") -> Any:
    """Return a plain value in JSON's types.

    Types are compared exactly: a subclass (a named tuple, a NumPy scalar, an enum) would come back as its base.

    Raises:
        UserError: see `encode_value`.
    """
    try:
        return _TAG[type(value)](value, where)
    except KeyError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
    except RecursionError:
        kind = "a value that contains itself, or is nested too deeply"
    except UnicodeEncodeError:
        kind = "a string that is not valid Unicode"
    raise UserError(f"{'its part ' + where if where else 'it'} is {kind}, not a plain value")


def untagged(document: Any) -> Any:
    """Return the value that `tagged` was given.

    Raises:
        Corrupt: see `decode_value`.
    """
    if isinstance(document, list):
        return [untagged(v) for v in document]
    if not isinstance(document, dict):
        return document
    try:
        [(tag, content)] = document.items()
        return _UNTAG[tag](content)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Corrupt(f"not a plain value: {error!r}") from error


def dense_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes in C order, flat uint8 on the CPU; a view where that needs no copy.

    Raises:
        UserError: it has no such bytes.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UserError("it is a sparse or quantized tensor; save its parts, as dense tensors")
    return flat_bytes(tensor.detach().cpu().resolve_conj().resolve_neg(), ())


def _itself(value: Any, where: str) -> Any:
    return value


def _text(value: str, where: str) -> str:
    value.encode()
    return value


def _int(value: int, where: str) -> Any:
    return value if -_INT64 <= value < _INT64 else {"int": str(value)}


def _float(value: float, where: str) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}


def _bytes(value: bytes, where: str) -> Any:
    return {"bytes": base64.b64encode(value).decode()}


def _list(value: list[Any] | tuple[Any, ...], where: str) -> list[Any]:
    return [tagged(v, f"{where}[{i}]") for i, v in enumerate(value)]


def _pairs(value: dict[Any, Any], where: str) -> list[Any]:
    return [[tagged(k, f"{where}[a key]"), tagged(v, f"{where}[{k!r}]")] for k, v in value.items()]


def _tensor(value: torch.Tensor, where: str) -> Any:
    data = dense_bytes(value).numpy().tobytes()
    return {"tensor": [torch_name(value.dtype), list(value.shape), base64.b64encode(data).decode()]}


def _read_tensor(content: Any) -> torch.Tensor:
    dtype, shape, data = content
    flat = torch.frombuffer(bytearray(base64.b64decode(data)) or bytearray(1), dtype=torch.uint8)
    return flat[: len(base64.b64decode(data))].view(named(dtype, torch.dtype)).reshape(shape).clone()


def _read_pairs(content: Any) -> list[tuple[Any, Any]]:
    return [(untagged(k), untagged(v)) for k, v in content]


_TAG: dict[type, Callable[[Any, str], Any]] = {
    type(None): _itself,
    bool: _itself,
    str: _text,
    int: _int,
    float: _float,
    bytes: _bytes,
    list: _list,
    tuple: lambda v, w: {"tuple": _list(v, w)},
    dict: lambda v, w: {"dict": _pairs(v, w)},
    OrderedDict: lambda v, w: {"ordered": _pairs(v, w)},
    torch.Tensor: _tensor,
}

_UNTAG: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "bytes": base64.b64decode,
    "tuple": lambda c: tuple(untagged(v) for v in c),
    "dict": lambda c: dict(_read_pairs(c)),
    "ordered": lambda c: OrderedDict(_read_pairs(c)),
    "tensor": _read_tensor,
}
