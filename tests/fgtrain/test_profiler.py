"""A profile of a few steps: a trace that can be read, a summary that adds up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from fgtrain.checkpointing import checkpoint, is_checkpointed
from fgtrain.errors import UserError
from fgtrain.oom import is_oom
from fgtrain.profiler import SETTLE, Profiler
from fgtrain.trace import SPANS, summarise

Told = list[tuple[int, Path, str]]


def run(profiler: Profiler, steps: int) -> None:
    """Steps that do a little of everything."""
    for step in range(1, steps + 1):
        for name in SPANS:
            with profiler.span(name):
                torch.ones(64, 64).mm(torch.ones(64, 64))
        profiler.stepped(step, last=step == steps)


@pytest.mark.parametrize(("steps", "expected"), [(20, 2), (SETTLE + 1, 1)])
def test_trace_holds_the_steps_asked_for_as_far_as_the_run_has_them(tmp_path: Path, steps: int, expected: int) -> None:
    told: Told = []
    run(Profiler(2, tmp_path, lambda *words: told.append(words)), steps)
    ((step, path, text),) = told
    assert step == SETTLE + expected
    found = summarise(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
    assert found.steps == expected
    assert all(found.spans[name] > 0 for name in SPANS)
    assert sum(found.spans.values()) <= found.total
    assert text.startswith(f"{expected} steps of ")


def test_without_steps_nothing_is_recorded(tmp_path: Path) -> None:
    run(Profiler(0, tmp_path), 5)
    run(Profiler(9, tmp_path), SETTLE)
    assert not list(tmp_path.iterdir())


def test_errors_that_mean_no_memory_are_told_from_others() -> None:
    assert is_oom(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_oom(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_oom(RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"))
    assert not is_oom(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_network_without_blocks_to_compute_anew_is_refused_by_name() -> None:
    net = torch.nn.Linear(2, 2)
    assert not is_checkpointed(net)
    with pytest.raises(UserError, match="checkpointing=true: model.name=x has none"):
        checkpoint(net, "model.name=x")
