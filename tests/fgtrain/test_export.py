"""Weights out of chunks, without torch; torch and safetensors only check the result."""

from __future__ import annotations

import math
import subprocess
import sys
import uuid
from pathlib import Path
from random import Random

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from fgtrain import manifest as manifests
from fgtrain.compare import compare, greatest_difference
from fgtrain.errors import Corrupt, UserError
from fgtrain.export import DTYPES, export
from fgtrain.manifest import Group, Manifest, TensorSpan, chunk_key
from fgtrain.runstore import RunStore
from fgtrain.snapshot.layout import Layout, flat_bytes
from fgtrain.stores import open_store
from tests.testbed.snapshots import manifest_of

Tensors = dict[str, dict[str, torch.Tensor]]


def stored(tensors: Tensors, chunk_bytes: int = 48, run: str = "r") -> tuple[RunStore, Manifest]:
    """Store tensors as the saver lays them out."""
    runs = RunStore(open_store(f"memory://{uuid.uuid4()}"), run)
    return runs, add_snapshot(runs, tensors, chunk_bytes)


def add_snapshot(runs: RunStore, tensors: Tensors, chunk_bytes: int = 48) -> Manifest:
    layout = Layout(tensors, chunk_bytes)
    groups = {}
    for group, bytes_ in layout.group_bytes.items():
        whole = bytearray(bytes_)
        for name, t in tensors[group].items():
            span = layout.spans[name]
            whole[span.offset : span.offset + span.bytes_] = bytes(flat_bytes(t).tolist())
        pieces = [bytes(whole[i : i + chunk_bytes]) for i in range(0, bytes_, chunk_bytes)]
        groups[group] = Group(bytes_, chunk_bytes, tuple(runs.put_chunk(p) for p in pieces))
    manifest = manifest_of(runs.run, 1, {"0" * 64: 1})
    weights = manifests.weights_digest(groups, layout.spans, groups)
    return msgspec.structs.replace(manifest, groups=groups, tensors=layout.spans, weights=weights)


def every_kind() -> Tensors:
    torch.manual_seed(0)
    model = {
        f"model/{d}": torch.randn(3, 5).to(getattr(torch, d)) for d in ("float64", "float32", "float16", "bfloat16")
    }
    model |= {
        f"model/{d}": torch.randint(0, 100, (7,)).to(getattr(torch, d)) for d in ("int64", "int32", "uint8", "bool")
    }
    model["model/float8_e4m3fn"] = torch.randn(9).to(torch.float8_e4m3fn)
    model["model/number"] = torch.tensor(41)
    model["model/empty"] = torch.zeros(0, 4)
    model["model/channels.last"] = torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)
    return {"model": model, "optim": {"optim/float32/exp_avg": torch.ones(3, 5)}}


def test_every_type_survives_bit_for_bit(tmp_path: Path) -> None:
    tensors = every_kind()
    runs, manifest = stored(tensors)
    bytes_ = export(runs, manifest, tmp_path / "w.safetensors", {"run": "r", "step": "1"}, raw=False)
    assert bytes_ == (tmp_path / "w.safetensors").stat().st_size
    read = load_file(tmp_path / "w.safetensors")
    expected = {n.removeprefix("model/"): t for n, t in tensors["model"].items()}
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            read[name].view(torch.uint8) if tensor.dim() else read[name],
            tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor,
        )
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"run": "r", "step": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_moving_average_is_exported_unless_raw_is_asked_for(tmp_path: Path) -> None:
    tensors = {
        "model": {"model/w": torch.ones(40), "model/count": torch.tensor(3)},
        "ema": {"ema/w": torch.full((40,), 2.0)},
    }
    runs, manifest = stored(tensors)
    export(runs, manifest, tmp_path / "a", {}, raw=False)
    export(runs, manifest, tmp_path / "b", {}, raw=True)
    average, raw = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert average.keys() == raw.keys() == {"w", "count"}
    assert average["w"][0] == 2 and raw["w"][0] == 1
    assert average["count"] == raw["count"] == 3


def test_damaged_chunk_leaves_no_file(tmp_path: Path) -> None:
    runs, manifest = stored({"model": {"model/w": torch.ones(100)}})
    (tmp_path / "w").write_bytes(b"an earlier file")
    runs.store.put(chunk_key(manifest.groups["model"].chunks[-1]), b"flipped")
    with pytest.raises(Corrupt, match="is not what was written"):
        export(runs, manifest, tmp_path / "w", {}, raw=False)
    assert (tmp_path / "w").read_bytes() == b"an earlier file"
    assert len(list(tmp_path.iterdir())) == 1


def test_file_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    runs, manifest = stored({"model": {"model/w": torch.ones(3)}})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="--to .*folder"):
        export(runs, manifest, tmp_path / "folder", {}, raw=False)


def test_unknown_type_is_named(tmp_path: Path) -> None:
    runs, manifest = stored({"model": {"model/w": torch.ones(3)}})
    spans = {"model/w": TensorSpan("quint8", (12,), "model", 0, 12)}
    with pytest.raises(UserError, match="model/w is of type quint8"):
        export(runs, msgspec.structs.replace(manifest, tensors=spans), tmp_path / "w", {}, raw=False)
    assert set(DTYPES.values()) >= {"BF16", "F32", "I64"}


def test_export_imports_no_torch() -> None:
    code = "import sys, fgtrain.export, fgtrain.compare, fgtrain.prune; print([m for m in sys.modules if m == 'torch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- comparing ----------------------------------------------------------------------------------------------------


def test_snapshots_of_the_same_weights_are_the_same_however_they_lie() -> None:
    tensors = every_kind()
    runs, a = stored(tensors)
    elsewhere = {
        "frozen": {"model/int64": tensors["model"]["model/int64"]},
        "model": {n: t.contiguous() for n, t in tensors["model"].items() if n != "model/int64"},
    }
    b = add_snapshot(runs, elsewhere, chunk_bytes=100)
    assert a.weights != b.weights
    found = compare((runs, a), (runs, b))
    assert found.same
    assert found.tensors == len(tensors["model"])
    assert compare((runs, a), (runs, a)).bytes_shared == sum(a.chunks().values())


def test_what_differs_is_named_with_its_greatest_difference() -> None:
    a = {"model": {f"model/{n}": torch.zeros(30) for n in ("same", "far", "shape", "type", "gone")}}
    b = {
        "model": {
            "model/same": torch.zeros(30),
            "model/far": torch.zeros(30).index_fill(0, torch.tensor([7]), -2.5),
            "model/shape": torch.zeros(31),
            "model/type": torch.zeros(30, dtype=torch.float16),
            "model/fresh": torch.zeros(1),
        }
    }
    runs, one = stored(a)
    found = {d.name: (d.what, d.max_abs) for d in compare((runs, one), (runs, add_snapshot(runs, b))).differ}
    assert found == {
        "model/far": ("values", 2.5),
        "model/shape": ("shape", None),
        "model/type": ("dtype", None),
        "model/gone": ("absent in B", None),
        "model/fresh": ("absent in A", None),
    }


@given(st.lists(st.floats(width=16), min_size=1, max_size=20), st.integers(0, 10**6))
def test_greatest_difference_is_torchs(values: list[float], seed: int) -> None:
    random = Random(seed)
    others = [random.choice([v, v + 1, math.nan, math.inf, 0.0]) for v in values]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        a, b = torch.tensor(values, dtype=dtype), torch.tensor(others, dtype=dtype)
        span = TensorSpan(str(dtype).removeprefix("torch."), tuple(a.shape), "model", 0, a.nbytes)
        one, other = (bytes(t.view(torch.uint8).tolist()) for t in (a, b))
        apart = [
            0.0 if x == y or (x != x and y != y) else abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        expected = math.inf if any(x != x for x in apart) else max(apart)
        assert greatest_difference(one, other, span) == pytest.approx(expected)
