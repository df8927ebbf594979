"""Beginning a run with the weights of another run's snapshot.

Taken are the weights that the other run was evaluated by and exported: its moving average where it keeps one. All else
begins anew: step 0, a fresh optimizer, and a moving average that starts from these weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from fgtrain.ema import MovingAverage
from fgtrain.errors import FglaunchError, UserError
from fgtrain.lineage import adopt
from fgtrain.manifest import Manifest
from fgtrain.place import Place, from_leader
from fgtrain.runstore import RunFile, RunStore
from fgtrain.snapshot import load
from fgtrain.state import State

_SHOWN = 4


def parent_of(run: RunFile, runs: RunStore, place: Place) -> Manifest | None:
    """Return the manifest of the weights that a run begins with, None if there is none; all ranks call together.

    Raises:
        UserError, FglaunchError: see `lineage.adopt`.
    """
    if run.init_from is None:
        return None
    answer = from_leader(_adopted(run, runs) if place.leads else None, place)
    if isinstance(answer, FglaunchError):
        raise answer
    return answer


def _adopted(run: RunFile, runs: RunStore) -> Manifest | FglaunchError | None:
    try:
        return adopt(run, runs)
    except FglaunchError as error:
        return error


def take_weights(parent: Manifest, run: RunFile, runs: RunStore, place: Place, state: State) -> None:
    """Read a parent's weights into a fresh state; all ranks call together.

    Raises:
        UserError: tensors that differ in name or shape and are not skipped.
        Corrupt: the weights do not verify.
    """
    saved = evaluated(load.read_tensors(runs, parent, place))
    live = state.net.state_dict(keep_vars=True)
    taken = matching(
        {n: tuple(t.shape) for n, t in saved.items()}, {n: tuple(t.shape) for n, t in live.items()}, run.init_skip
    )
    state.take_weights({name: saved[name] for name in taken})
    if state.ema:
        state.ema = MovingAverage(state.net, state.ema.decay)


def evaluated(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that a run is evaluated by, by their names in the network, out of a snapshot's tensors."""
    model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    return model | {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}


Shapes = Mapping[str, tuple[int, ...]]


def matching(saved: Shapes, live: Shapes, skip: Sequence[str]) -> list[str]:
    """Return the names of the tensors to take over: all but those that match a pattern of `skip`.

    Raises:
        UserError: a tensor that only one side has or that has another shape; or a pattern that matches none.
    """
    names = sorted(saved.keys() | live.keys())
    for pattern in skip:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise UserError(f"--init-skip {pattern!r} matches no tensor; they look like {names[0]!r}")
    taken = [n for n in names if not any(fnmatchcase(n, p) for p in skip)]
    wrong = [
        f"{n} ({_spell(saved.get(n))} there, {_spell(live.get(n))} here)" for n in taken if saved.get(n) != live.get(n)
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"--init-from: tensors differ: {', '.join(wrong[:_SHOWN])}{more};"
            " leave them fresh with --init-skip PATTERN, or change the model"
        )
    return taken


def _spell(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
