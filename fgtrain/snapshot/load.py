"""Recovery: the newest state that verifies, from the nearest tier.

Host memory first: what the ranks of the last attempts staged and this job's nodes still hold. Then the store: every
byte is read once, by one rank, into memory that its node's ranks share, and goes from there to the other nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from fgtrain.errors import Corrupt, FglaunchError, KeyMissing, StoreUnavailable
from fgtrain.manifest import Manifest, chunk_sizes
from fgtrain.place import Place, agree, from_all, from_leader
from fgtrain.runstore import RunStore
from fgtrain.snapshot import common, staged
from fgtrain.snapshot.layout import split, tensor_at
from fgtrain.snapshot.staged import Header, Lines

_STREAMS = 8  # requests at a time
_ALIGN = 64  # of groups in memory, so that any dtype can be viewed in place


class Restored(NamedTuple):
    """A state to go on from, and where it came from.

    `base` is the manifest that the history goes on from; `verified` tells that all its bytes were read. `lines` are log
    lines newer than it (on rank 0).
    """

    step: int
    tier: str
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    base: Manifest | None
    verified: bool
    lines: Lines


def newest(runs: RunStore, place: Place, memory: Sequence[Path], note: Callable[[str], None]) -> Restored | None:
    """Return the newest state that verifies, None if the run has none. Called by all ranks together.

    Args:
        runs: the run's corner of the store.
        place: this process's place.
        memory: the folders in which this node's ranks stage.
        note: told (on rank 0) of everything that had to be passed over.

    Raises:
        Corrupt: there are snapshots, but none that verifies; training anew would hide the loss.
    """
    names = from_leader(runs.manifest_names() if place.leads else [], place)
    # What was staged before the run was sent back to an older snapshot must not bring the abandoned steps back.
    fence = from_leader(runs.fence() if place.leads else 0, place)
    mine, problems = _parts(memory, runs.run, fence)
    ranks = from_all((mine, problems), place)
    everyone = [parts for parts, _ in ranks]
    for problem in sorted({p for _, some in ranks for p in some}) if place.leads else []:
        note(f"passed over in memory: {problem}")
    return _first(runs, place, everyone, _options(_whole(everyone), names), note)


def from_store(runs: RunStore, place: Place, names: list[str], note: Callable[[str], None]) -> Restored | None:
    """Return the newest of the manifests `names` (rising) whose every byte verifies; None without names.

    Raises:
        Corrupt: none of them verifies.
    """
    return _first(runs, place, [], _options([], names), note)


def _first(
    runs: RunStore,
    place: Place,
    everyone: list[list[_Part]],
    options: list[list[_Part] | str],
    note: Callable[[str], None],
) -> Restored | None:
    """Return the first option that verifies; without any in the store, there may be none."""
    for option in options:
        try:
            if isinstance(option, str):
                return _read(runs, place, option)
            return _assemble(runs, place, everyone, option)
        except Corrupt as error:
            what = f"snapshot {option}" if isinstance(option, str) else f"the state of step {option[0].step} in memory"
            if place.leads:
                note(f"{what} is passed over: {error}")
    if committed := sum(isinstance(option, str) for option in options):
        raise Corrupt(f"none of the {committed} snapshots of {runs.run} verifies")
    return None


def _options(in_memory: list[list[_Part]], names: list[str]) -> list[list[_Part] | str]:
    """Return the states in memory and in the store, newest first; at one step, memory is nearer."""
    options: list[tuple[int, int, list[_Part] | str]] = [(p[0].step, 1, p) for p in in_memory]
    options += [(int(name.split("-")[0]), 0, name) for name in reversed(names)]
    return [o[2] for o in sorted(options, key=lambda o: o[:2], reverse=True)]


# -- host memory --------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A staged share that some rank's node holds."""

    attempt: int
    step: int
    rank: int
    world: int
    base: str
    folder: str
    slot: str


def _parts(memory: Sequence[Path], run: str, fence: int) -> tuple[list[_Part], list[str]]:
    """List what this node holds of a run's attempts past `fence`, and what is unreadable."""
    found, problems = [], []
    for folder in [f for m in memory if m.is_dir() for f in sorted(m.glob("*"))]:
        for slot, h in staged.headers(folder):
            if isinstance(h, Corrupt):
                problems.append(str(h))
            elif h.run == run and h.attempt > fence:
                found.append(_Part(h.attempt, h.step, h.rank, h.world, h.base or "", str(folder), slot))
    return found, problems


def _whole(everyone: list[list[_Part]]) -> list[list[_Part]]:
    """Return the states of which some node holds every share, newest first."""
    by_state: dict[tuple[int, int, int], dict[int, _Part]] = {}
    for part in sorted({p for parts in everyone for p in parts}):
        by_state.setdefault((part.step, part.attempt, part.world), {}).setdefault(part.rank, part)
    whole = [s for s, parts in by_state.items() if parts.keys() >= set(range(s[2]))]
    return [[by_state[s][rank] for rank in range(s[2])] for s in sorted(whole, reverse=True)]


def _assemble(runs: RunStore, place: Place, everyone: list[list[_Part]], parts: list[_Part]) -> Restored:
    """Put a state together from its shares; each is read by one rank that has it.

    Ranks hear of a commit at different times, and then drop the log lines it holds: the newest one is the base.
    """
    base = from_leader(_manifest(runs, max(p.base for p in parts)) if place.leads else None, place)
    if isinstance(base, Corrupt):
        raise base
    sources = [next(r for r, own in enumerate(everyone) if part in own) for part in parts]
    held, problem = _read_held(place, parts, sources)
    _agree_on(problem)
    heads: list[Header] = [_broadcast(held[i][0] if i in held else None, s, place) for i, s in enumerate(sources)]
    buffers = {g: torch.zeros(b, dtype=torch.uint8) for g, b in heads[0].group_bytes.items()}
    for i, (head, source) in enumerate(zip(heads, sources, strict=True)):
        for s in head.stretches:
            view = buffers[s.group][s.start : s.stop]
            if i in held:
                data = held[i][1][s.file][s.offset : s.offset + s.stop - s.start]
                view.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            if place.size > 1:
                dist.broadcast(view, src=source)
    lines = _joined([head.lines for head in heads], base.step if base else -1) if place.leads else {}
    tensors = {name: tensor_at(buffers[span.group], span) for name, span in heads[0].spans.items()}
    return Restored(heads[0].step, "memory", tensors, heads[0].values, base, False, lines)


def _joined(ranks: list[Lines], after: int) -> Lines:
    """Return all ranks' log lines of steps past `after`."""
    lines: Lines = {}
    for some in ranks:
        for log, pairs in some.items():
            lines.setdefault(log, []).extend((step, line) for step, line in pairs if step > after)
    return lines


def _manifest(runs: RunStore, name: str) -> Manifest | Corrupt | None:
    """Read a manifest, on the leading rank; what is wrong with it is for all to know."""
    try:
        return runs.manifest(name) if name else None
    except Corrupt as error:
        return error
    except KeyMissing:
        return Corrupt(f"manifest {name} is gone")


def _read_held(
    place: Place, parts: list[_Part], sources: list[int]
) -> tuple[dict[int, tuple[Header, dict[str, bytes]]], FglaunchError | None]:
    """Read and verify the shares that fall to this rank."""
    held = {}
    try:
        for i, part in enumerate(parts):
            if sources[i] == place.rank:
                folder = Path(part.folder)
                header = staged.read_header(folder, part.slot)
                if header.step != part.step:
                    raise Corrupt(f"{folder / part.slot} changed while it was read")
                files = {s.file for s in header.stretches}
                held[i] = (header, {f: staged.verified_bytes(folder, header, f) for f in files})
    except FglaunchError as error:
        return held, error
    return held, None


def _broadcast(value: Any, source: int, place: Place) -> Any:
    if place.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


# -- the store ----------------------------------------------------------------------------------------------------


def _read(runs: RunStore, place: Place, name: str) -> Restored:
    manifest = from_leader(_manifest(runs, name) if place.leads else None, place)
    if isinstance(manifest, Corrupt):
        raise manifest
    assert manifest is not None
    tensors = read_tensors(runs, manifest, place)
    return Restored(manifest.step, "store", tensors, manifest.values, manifest, True, {})


def read_tensors(runs: RunStore, manifest: Manifest, place: Place) -> dict[str, torch.Tensor]:
    """Read and verify all tensors of a manifest from the store; all ranks call together.

    Raises:
        Corrupt, StoreError
    """
    starts, whole = _starts(manifest)
    chunks = [
        (starts[name] + number * group.chunk_bytes, bytes_, group.chunks[number])
        for name, group in sorted(manifest.groups.items())
        for number, bytes_ in enumerate(chunk_sizes(group))
    ]
    shares = [split([c[1] for c in chunks], rank, place.size) for rank in range(place.size)]
    memory = common.take(whole, place)
    scratch = common.Scratch()

    def fetch(i: int) -> None:
        start, bytes_, digest = chunks[i]
        memory.place(start, bytes_, partial(runs.fetch_chunk, digest), scratch)

    problem: FglaunchError | None = None
    with ThreadPoolExecutor(_STREAMS) as pool:
        try:
            for _ in pool.map(fetch, shares[place.rank]):
                pass
        except FglaunchError as error:
            problem = error
    memory.close()
    _agree_on(problem)
    memory.spread([_stretches(chunks, share) for share in shares], place)
    return {name: tensor_at(memory.buffer[starts[span.group] :], span) for name, span in manifest.tensors.items()}


def _starts(manifest: Manifest) -> tuple[dict[str, int], int]:
    """Return where each group begins in one stretch of memory, and how long that is."""
    starts, offset = {}, 0
    for name, group in sorted(manifest.groups.items()):
        starts[name] = offset
        offset += -(-group.bytes_ // _ALIGN) * _ALIGN
    return starts, offset


def _stretches(chunks: list[tuple[int, int, str]], which: range) -> list[tuple[int, int]]:
    """Join consecutive chunks into (start, stop)."""
    joined: list[tuple[int, int]] = []
    for i in which:
        start, bytes_, _ = chunks[i]
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], start + bytes_)
        else:
            joined.append((start, start + bytes_))
    return joined


def _agree_on(problem: FglaunchError | None) -> None:
    """Fail on every rank if one failed; a store that could not be reached outweighs a bad chunk.

    Raises:
        Corrupt, StoreError
    """
    kind = 0 if problem is None else 1 if isinstance(problem, Corrupt) else 2
    worst = int(agree(torch.tensor([kind]), dist.ReduceOp.MAX).item())
    if worst == 2:
        raise problem if kind == 2 and problem else StoreUnavailable("another rank could not read its share")
    if worst == 1:
        raise problem or Corrupt("another rank found a bad share")
