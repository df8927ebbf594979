"""Checkpoints of several ranks: sharded state saved by two is loaded by one and by three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fgtrain.dcp import StoreReader, StoreWriter, checkpoints
from fgtrain.stores.file import FileStore
from tests.testbed.ranks import on_ranks

pytestmark = pytest.mark.train

ROWS = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5)  # 7: no world here divides it


def sharded(fill: torch.Tensor, world: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (world,))
    return {
        "rows": distribute_tensor(fill, mesh, [Shard(0)]),
        "columns": distribute_tensor(fill, mesh, [Shard(1)]),
        "everywhere": distribute_tensor(fill, mesh, [Replicate()]),
        "plain": fill.clone(),
    }


def save_sharded(rank: int, url: str) -> None:
    state = {**sharded(ROWS, dist.get_world_size()), "step": 12}
    dcp.save(state, checkpoint_id="step-12", storage_writer=StoreWriter(url, "job"))


def load_sharded(rank: int, url: str) -> dict[str, Any]:
    state = {**sharded(torch.zeros(7, 5), dist.get_world_size()), "step": 0}
    dcp.load(state, storage_reader=StoreReader(url, "job"))
    return {"step": state["step"], **whole(state)}


@pytest.mark.parametrize("world", [1, 3])
def test_shards_of_two_ranks_load_on(world: int, tmp_path: Path) -> None:
    on_ranks(2, save_sharded, str(tmp_path))
    for state in on_ranks(world, load_sharded, str(tmp_path)):
        assert state["step"] == 12
        assert state["rows"] == state["columns"] == state["everywhere"] == state["plain"] == ROWS.tolist()


def trained(seed: int, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        model(torch.arange(12.0).reshape(2, 6) + step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a nested state, gathered from all ranks, as lists."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= {f"{key}.{k}": v for k, v in whole(value).items()}
        elif isinstance(value, torch.Tensor):
            found[key] = (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()
    return found


def save_fsdp(rank: int, url: str) -> dict[str, Any]:
    weights, optimizer = get_state_dict(*trained(seed=1, steps=3))
    state = {"model": weights, "optimizer": optimizer}
    dcp.async_save(state, checkpoint_id="step-3", storage_writer=StoreWriter(url, "fsdp")).result()
    return whole(state)


def load_fsdp(rank: int, url: str) -> dict[str, Any]:
    model, optimizer = trained(seed=2, steps=1)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id="step-3", storage_reader=StoreReader(url, "fsdp"))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return whole(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)))


@pytest.mark.parametrize("world", [1, 3])
def test_fsdp_state_of_two_ranks_loads_on(world: int, tmp_path: Path) -> None:
    saved = on_ranks(2, save_fsdp, str(tmp_path))[0]
    assert len(saved) > 8
    for loaded in on_ranks(world, load_fsdp, str(tmp_path)):
        assert loaded == saved


def refusal(rank: int, url: str, own_keys: bool, from_rank_zero: list[str]) -> str:
    state = {f"rng.{rank}" if own_keys else "rng": torch.full((3,), rank), "cursor": 5, "bn.mean": torch.ones(2)}
    state["bn.mean"] *= rank if from_rank_zero else 1
    try:
        dcp.save(state, storage_writer=StoreWriter(url, "job", "first", from_rank_zero=from_rank_zero))
    except CheckpointException as error:
        return str(error)
    empty = {key: torch.full_like(v, -1) if isinstance(v, torch.Tensor) else 0 for key, v in state.items()}
    dcp.load(empty, storage_reader=StoreReader(url, "job"))
    return str({k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in empty.items()})


def test_a_key_that_differs_between_ranks_is_refused_by_name(tmp_path: Path) -> None:
    for message in on_ranks(2, refusal, str(tmp_path), False, []):
        assert "1 keys differ between ranks" in message
        assert "rng (ranks 0 and 1)" in message
    assert checkpoints(FileStore(tmp_path), "job") == []


def test_each_rank_gets_its_own_key_back_and_rank_zeros_where_that_was_said(tmp_path: Path) -> None:
    assert on_ranks(2, refusal, str(tmp_path), True, ["bn.*"]) == [
        "{'rng.0': [0, 0, 0], 'cursor': 5, 'bn.mean': [0.0, 0.0]}",
        "{'rng.1': [1, 1, 1], 'cursor': 5, 'bn.mean': [0.0, 0.0]}",
    ]


def save_mixed_up(rank: int, url: str) -> str:
    try:
        dcp.save({"a": torch.ones(3)}, checkpoint_id=f"step-{rank}", storage_writer=StoreWriter(url, "job"))
    except CheckpointException as error:
        return str(error)
    return ""


def test_ranks_that_save_different_checkpoints_commit_none(tmp_path: Path) -> None:
    assert all("rank 1 is saving step-1" in message for message in on_ranks(2, save_mixed_up, str(tmp_path)))
    assert checkpoints(FileStore(tmp_path), "job") == []
