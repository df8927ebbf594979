"""All ranks of a run wait until each node has its cache of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fgtrain.cache.ready import Progress, make_ready
from fgtrain.data import Index
from fgtrain.journal import Journal
from fgtrain.place import Place, agree
from fgtrain.pulse import Pulse
from fgtrain.recipe import Recipe

_NOTE_S = 30.0


def ready_together(
    recipe: Recipe,
    index: Index,
    store: str,
    place: Place,
    pulse: Pulse,
    stop_asked: Callable[[], bool],
    journal: Journal,
) -> bool:
    """Have the caches ready that the recipe asks for; False if some rank was asked to stop meanwhile.

    All ranks call together. One of each node builds, and they ask each other about twice a second how it goes, so that
    no collective waits for the slowest node and the run is seen to move.

    Raises:
        UserError, StoreUnavailable: see `make_ready`.
    """
    if recipe.loader.cache == "off":
        return True
    building = make_ready(recipe, index, store=store, turn=place.node)
    told_at, looks = 0.0, 0
    try:
        while True:
            progress = next(building, None)
            asked = agree(torch.tensor([float(progress is not None), float(stop_asked())])).tolist()
            if asked[1] or not asked[0]:
                return not asked[1]
            looks += 1
            pulse.prepares(looks)
            if progress and time.monotonic() - told_at > _NOTE_S:
                told_at = time.monotonic()
                journal.event("note", text=_spell(progress))
    finally:
        building.close()


def _spell(progress: Progress) -> str:
    return f"{progress.what}: {progress.done} of {progress.total}" if progress.total else progress.what
