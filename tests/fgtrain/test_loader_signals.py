"""Loader processes leave notices to their rank: the step under way still gets its pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from fgtrain.loader import training_batches
from fgtrain.plan import make_plan
from fgtrain.recipe import Loader
from tests.fgtrain.recipes import recipe

pytestmark = pytest.mark.train


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_loader_ignores_what_asks_its_rank_to_leave(sig: signal.Signals) -> None:
    small = recipe(loader=Loader(workers=1, prefetch=1))
    index = small.data.index()
    plan = make_plan(small, len(index.train))
    before = psutil.Process().children()
    batches = training_batches(small, plan, index.train, start=0, rank=0, size=1, gpu=False)
    first = next(batches)
    [loader] = set(psutil.Process().children()) - set(before)
    os.kill(loader.pid, sig)
    more = [next(batches) for _ in range(4)]  # more than were prepared before
    assert len({tuple(b.ids) for b in [first, *more]}) == 5
    assert loader.is_running()
    assert loader.status() != psutil.STATUS_ZOMBIE


PROGRAM = """
from fgtrain import worker
from fgtrain.loader import evaluation_batches
from fgtrain.recipe import Loader
from tests.fgtrain.recipes import recipe

small = recipe(loader=Loader(workers=1, prefetch=1))
held_out = evaluation_batches(small, small.data.index().val, range(2), gpu=False)
batches = iter(held_out)
next(batches)
worker.end_children()
"""


def test_rank_that_ends_in_the_middle_of_something_does_not_wait_for_its_loaders() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
