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
from fgtrain.place import Place
from fgtrain.profiler import SETTLE, Profiler, make_profiler
from fgtrain.runstore import RunStore
from fgtrain.stores.memory import MemoryStore
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


def attempt(runs: RunStore, folder: Path, notes: list[str], steps: int, *, rank: int = 0) -> Profiler:
    """Run an attempt of so many steps, the last of which is not the run's."""
    profiler = make_profiler(2, runs, Place(rank, 2, rank, torch.device("cpu")), folder, notes.append)
    run(profiler, steps)
    return profiler


def test_the_first_attempt_that_gets_so_far_is_profiled_and_no_other(tmp_path: Path) -> None:
    runs, notes = RunStore(MemoryStore(f"{tmp_path}"), "run"), list[str]()
    attempt(runs, tmp_path, notes, SETTLE)
    attempt(runs, tmp_path, notes, SETTLE + 9, rank=1)
    assert not notes
    attempt(runs, tmp_path, notes, SETTLE + 9)
    (note,) = notes
    key = f"runs/run/profile/step-{SETTLE + 2}.json.gz"
    assert note.startswith("profile of rank 0, 2 steps of ") and key in note
    assert json.loads(gzip.decompress(runs.store.get(key)))["traceEvents"]
    for steps in (SETTLE, SETTLE + 9):
        attempt(runs, tmp_path, notes, steps).run_ends()
    assert len(notes) == 1


def test_a_run_without_a_step_to_profile_says_so_at_its_end(tmp_path: Path) -> None:
    runs, notes = RunStore(MemoryStore(f"{tmp_path}"), "run"), list[str]()
    attempt(runs, tmp_path, notes, 2)
    attempt(runs, tmp_path, notes, SETTLE, rank=1).run_ends()
    assert not notes
    attempt(runs, tmp_path, notes, SETTLE).run_ends()
    assert notes == ["--profile 2: no step was left to profile after the 3 that an attempt takes to settle"]
    Profiler().run_ends()


def test_errors_that_mean_no_memory_are_told_from_others() -> None:
    assert is_oom(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_oom(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_oom(RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"))
    assert not is_oom(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(
    "text",
    [
        "FIND was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_what_is_said_of_other_things_too_means_no_memory_on_a_device_that_is_full(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_oom(RuntimeError(text)), "without a device"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for free, meant in ((1, True), (50, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 100))
        assert is_oom(RuntimeError(text)) == meant


def test_network_without_blocks_to_compute_anew_is_refused_by_name() -> None:
    net = torch.nn.Linear(2, 2)
    assert not is_checkpointed(net)
    with pytest.raises(UserError, match="checkpointing=true: model.name=x has none"):
        checkpoint(net, "model.name=x")
