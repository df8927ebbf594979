"""What an item of a save plan is as bytes, and a fingerprint by which ranks see that they hold the same."""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType

from fgtrain.dcp.record import Encoding
from fgtrain.dcp.values import dense_bytes, encode_value
from fgtrain.errors import UserError

# Ranks that hold different values under one key differ nearly everywhere in them; replicas do nowhere.
SAMPLES = 4096


class Payload(NamedTuple):
    """An item's bytes, and what is noted of them: encoding, size, fingerprint."""

    data: memoryview
    encoding: Encoding
    bytes_: int
    fingerprint: str

    def noted(self) -> Payload:
        """Let go of the bytes."""
        return self._replace(data=memoryview(b""))


def payload(item: WriteItem, planner: SavePlanner, trust_pickle: bool) -> Payload:
    """Return an item of a save plan as bytes.

    Raises:
        UserError: a value that is not plain, or a tensor that has no plain bytes.
    """
    if item.type is WriteItemType.BYTE_IO:
        encoding, value = _value(item, planner, trust_pickle)
        return Payload(memoryview(value), encoding, len(value), hashlib.sha256(value).hexdigest())
    tensor = _tensor(item, planner)
    try:
        data = dense_bytes(tensor).numpy().data
    except UserError as error:
        raise UserError(f"{item.index.fqn}: {error}") from error
    return Payload(data, "tensor", tensor.nbytes, _sampled(tensor))


def fingerprint(item: WriteItem, planner: SavePlanner, trust_pickle: bool) -> str:
    """Return the fingerprint that `payload` would have, without the bytes of a large tensor.

    Raises:
        UserError: see `payload`.
    """
    if item.type is WriteItemType.BYTE_IO:
        return hashlib.sha256(_value(item, planner, trust_pickle)[1]).hexdigest()
    return _sampled(_tensor(item, planner))


def _tensor(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach()


def _sampled(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's type, shape and at most `SAMPLES` of its elements, evenly spaced."""
    flat = tensor.reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(dense_bytes(flat[:: -(-flat.numel() // SAMPLES) or 1]).numpy().data)
    return digest.hexdigest()


def _value(item: WriteItem, planner: SavePlanner, trust_pickle: bool) -> tuple[Encoding, bytes]:
    reason = "the planner serialises values in its own way"
    if isinstance(planner, DefaultSavePlanner) and _keeps_values(planner):
        try:
            return "plain", encode_value(planner.lookup_object(item.index))
        except UserError as error:
            reason = str(error)
    if not trust_pickle:
        raise UserError(
            f"{item.index.fqn}: {reason}. Turn it into numbers, strings, lists, dicts or tensors, or give both"
            " StoreWriter and StoreReader trust_pickle=True: loading then runs whatever code the bytes hold"
        )
    serialised: Any = planner.resolve_data(item)
    assert isinstance(serialised, io.BytesIO)
    return "opaque", serialised.getvalue()


def _keeps_values(planner: DefaultSavePlanner) -> bool:
    """Tell whether this planner's answer for a value is torch.save of what it looks up, and nothing else."""
    kind, default = type(planner), DefaultSavePlanner
    return kind.resolve_data is default.resolve_data and kind.transform_object is default.transform_object
