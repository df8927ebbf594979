"""Short words for tests of checkpoints: save, load, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner

from fgtrain.dcp import StoreReader, StoreWriter
from fgtrain.stores import Store


def save(state: dict[str, Any], store: Store, name: str, planner: SavePlanner | None = None, **options: Any) -> None:
    """Save under the prefix `job`; the options are the writer's."""
    dcp.save(state, checkpoint_id=name, storage_writer=StoreWriter(store, "job", **options), planner=planner)


def load(
    state: dict[str, Any], store: Store, name: str | None = None, planner: LoadPlanner | None = None, **options: Any
) -> dict[str, Any]:
    """Load into a state, and return it; the options are the reader's."""
    dcp.load(state, storage_reader=StoreReader(store, "job", name, **options), planner=planner)
    return state


def cause(call: Callable[[], object]) -> BaseException:
    """What rank 0 raised in a call that must fail."""
    with pytest.raises(CheckpointException) as caught:
        call()
    return caught.value.failures[0][0]


def blank(value: Any) -> Any:
    """A state of the same form with nothing in it: zeros for tensors, None for values."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return type(value)((k, blank(v)) for k, v in value.items())
    if isinstance(value, list) and any(isinstance(v, torch.Tensor | dict) for v in value):
        return [blank(v) for v in value]
    return None


def assert_same(found: Any, expected: Any, where: str = "state") -> None:
    """Compare nested states: types, values, and the bits of tensors."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{where}[{i}]")
    else:
        assert found == expected, where
