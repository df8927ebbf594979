"""Weights out of a snapshot into a safetensors file, without torch and without holding them in memory.

The format is written here, since the library wants all bytes at once, and by pointers that differ between versions.
Source: https://huggingface.co/docs/safetensors: 8 bytes with the header's length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import msgspec

from fgtrain.errors import UserError
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore
from fgtrain.tensorbytes import TensorBytes

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_ALIGN = 8  # of the header's length, so that tensors can be mapped in place


def weight_names(manifest: Manifest, *, raw: bool) -> dict[str, str]:
    """Return which tensor of a snapshot gives each weight of the network: name in the network -> name in the snapshot.

    The moving average where there is one (as at the end of a run), unless `raw`.
    """
    names = {n.removeprefix("model/"): n for n in manifest.tensors if n.startswith("model/")}
    average = {n.removeprefix("ema/"): n for n in manifest.tensors if n.startswith("ema/")}
    return names if raw else names | average


def export(runs: RunStore, manifest: Manifest, target: Path, metadata: dict[str, str], *, raw: bool) -> int:
    """Write a snapshot's weights to a safetensors file, whole or not at all; returns its bytes.

    Raises:
        UserError: the file cannot be written, or a tensor is of a type that the format does not have.
        Corrupt: a chunk does not verify.
        StoreUnavailable: worth another try.
    """
    names = weight_names(manifest, raw=raw)
    # By place in the snapshot, so that each chunk is read once; wide types first, so that all are aligned.
    order = sorted(names, key=lambda n: (-_item(manifest, names[n]), *_place(manifest, names[n])))
    header = _header(manifest, names, order, metadata)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    reader = TensorBytes(runs, manifest)
    try:
        try:
            with part.open("xb") as file:
                file.write(header)
                for name in order:
                    file.write(reader.read(names[name]))
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target.stat().st_size
    except OSError as error:
        raise UserError(f"--to {target}: {error.strerror or error}") from error


def _place(manifest: Manifest, name: str) -> tuple[str, int]:
    span = manifest.tensors[name]
    return span.group, span.offset


def _item(manifest: Manifest, name: str) -> int:
    """Return the bytes of one element; alignment needs no more."""
    return int("".join(c for c in _dtype(manifest, name).split("_")[0] if c.isdigit()) or 8) // 8


def _dtype(manifest: Manifest, name: str) -> str:
    dtype = manifest.tensors[name].dtype
    if dtype not in DTYPES:
        raise UserError(f"{name} is of type {dtype}, which safetensors does not have")
    return DTYPES[dtype]


def _header(manifest: Manifest, names: dict[str, str], order: list[str], metadata: dict[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name in order:
        span = manifest.tensors[names[name]]
        fields[name] = {
            "dtype": _dtype(manifest, names[name]),
            "shape": span.shape,
            "data_offsets": (at, at + span.bytes_),
        }
        at += span.bytes_
    body = msgspec.json.encode(fields)
    body += b" " * (-len(body) % _ALIGN)
    return len(body).to_bytes(8, "little") + body
