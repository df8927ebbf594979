"""`--profile STEPS`: torch's profiler over a few steps of a run: a trace in the store, a summary for the user."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fgtrain import trace
from fgtrain.errors import StoreError
from fgtrain.place import Place
from fgtrain.runstore import RunStore

SETTLE = 3
"""Steps before the first that is profiled: caches fill, kernels are chosen, buckets are laid out anew."""

_FOLDER = "profile/"


class Profiler:
    """Without steps to profile, or on another rank than 0, it does nothing."""

    def __init__(
        self,
        steps: int = 0,
        folder: Path | None = None,
        tell: Callable[[int, Path, str], None] = lambda step, path, text: None,
        miss: Callable[[], None] = lambda: None,
    ) -> None:
        """Profile `steps` steps.

        Args:
            steps: how many, after the first few of this attempt; 0: none.
            folder: where the trace goes.
            tell: called with the last step, the trace's file and its summary.
            miss: called if the run ends and there was no step to profile.
        """
        self._left, self._folder, self._tell, self._miss = steps, folder, tell, miss
        self._wait = SETTLE if steps else 0
        self._profile: Any = None
        self._step: Any = None

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Mark a part of a step: one of `trace.SPANS`."""
        return torch.profiler.record_function(trace.PREFIX + name) if self._profile else nullcontext()

    def stepped(self, step: int, *, last: bool) -> None:
        """A step is over, `step` counts it; the `last` one of this attempt ends the profile, too."""
        if not self._left:
            return
        if self._profile is None:
            self._wait -= 1
            if self._wait <= 0 and not last:
                self._start()
            return
        self._step.__exit__(None, None, None)
        self._left -= 1
        if last or not self._left:
            self._finish(step)
        else:
            self._begin_step()

    def run_ends(self) -> None:
        """No step of the run is left, in this attempt or another."""
        if self._left:
            self._miss()

    def _start(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds)
        self._profile.start()
        self._begin_step()

    def _begin_step(self) -> None:
        self._step = torch.profiler.record_function(trace.STEP)
        self._step.__enter__()

    def _finish(self, step: int) -> None:
        self._left = 0
        profile, self._profile = self._profile, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        profile.stop()
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = self._folder / f"step-{step}.json"
        profile.export_chrome_trace(str(plain))
        data = plain.read_bytes()
        packed = plain.with_suffix(".json.gz")
        packed.write_bytes(gzip.compress(data, compresslevel=5))
        plain.unlink()
        self._tell(step, packed, trace.spell(trace.summarise(json.loads(data)["traceEvents"])))


def make_profiler(steps: int, runs: RunStore, place: Place, folder: Path, note: Callable[[str], None]) -> Profiler:
    """Make a run's profiler: of rank 0, in the first attempt that lives so long. The trace lies in the store.

    It is also what later attempts know by that they need not profile.
    """
    if not (steps and place.leads) or any(runs.store.list(runs.key(_FOLDER))):
        return Profiler()

    def tell(step: int, path: Path, text: str) -> None:
        key = runs.key(_FOLDER + path.name)
        try:
            runs.store.put(key, path.read_bytes())
            where = f"{runs.store.url}/{key}"
        except StoreError as error:
            where = f"{path} ({error})"
        note(f"profile of rank 0, {text}\n  trace: {where} (chrome://tracing, or ui.perfetto.dev)")

    def miss() -> None:
        note(f"--profile {steps}: no step was left to profile after the {SETTLE} that an attempt takes to settle")

    return Profiler(steps, folder / "profile", tell, miss)
