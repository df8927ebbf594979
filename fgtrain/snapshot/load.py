"""Finding and reading the newest snapshot that verifies; each byte is read once from the store, by one rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from fgtrain.errors import Corrupt, FglaunchError, StoreUnavailable
from fgtrain.manifest import Manifest, chunk_sizes
from fgtrain.place import Place, agree, from_leader
from fgtrain.runstore import RunStore
from fgtrain.snapshot.layout import split, tensor_at


def newest(
    runs: RunStore, place: Place, note: Callable[[str], None]
) -> tuple[Manifest, dict[str, torch.Tensor]] | None:
    """Return the newest snapshot whose every byte verifies, with its tensors; None if the run has none.

    Called by all ranks together. `note` is told (on rank 0) of each snapshot that had to be passed over.

    Raises:
        Corrupt: there are snapshots, but none that verifies; training anew would hide the loss.
    """
    names = from_leader(runs.manifest_names() if place.leads else [], place)
    for name in reversed(names):
        try:
            manifest = from_leader(_manifest(runs, name) if place.leads else None, place)
            if isinstance(manifest, Corrupt):
                raise manifest
            assert manifest is not None
            return manifest, _tensors(runs, manifest, place)
        except Corrupt as error:
            if place.leads:
                note(f"snapshot {name} is passed over: {error}")
    if names:
        raise Corrupt(f"none of the {len(names)} snapshots of {runs.run} verifies")
    return None


def _manifest(runs: RunStore, name: str) -> Manifest | Corrupt:
    try:
        return runs.manifest(name)
    except Corrupt as error:
        return error


def _tensors(runs: RunStore, manifest: Manifest, place: Place) -> dict[str, torch.Tensor]:
    buffers = {name: torch.empty(group.bytes_, dtype=torch.uint8) for name, group in manifest.groups.items()}
    chunks = [
        (name, number * group.chunk_bytes, bytes_, group.chunks[number])
        for name, group in sorted(manifest.groups.items())
        for number, bytes_ in enumerate(chunk_sizes(group))
    ]
    sizes = [c[2] for c in chunks]
    problem: FglaunchError | None = None
    try:
        for i in split(sizes, place.rank, place.size):
            name, start, bytes_, digest = chunks[i]
            data = runs.get_chunk(digest)
            buffers[name][start : start + bytes_] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    except FglaunchError as error:
        problem = error
    _agree_on(problem)
    _exchange(buffers, chunks, sizes, place)
    return {name: tensor_at(buffers[span.group], span) for name, span in manifest.tensors.items()}


def _agree_on(problem: FglaunchError | None) -> None:
    """Fail on every rank if one failed; a store that could not be reached outweighs a bad chunk.

    Raises:
        Corrupt, StoreError
    """
    kind = 0 if problem is None else 1 if isinstance(problem, Corrupt) else 2
    worst = int(agree(torch.tensor([kind]), dist.ReduceOp.MAX).item())
    if worst == 2:
        raise problem if kind == 2 and problem else StoreUnavailable("another rank could not read its chunks")
    if worst == 1:
        raise problem or Corrupt("another rank found a bad chunk")


def _exchange(
    buffers: dict[str, torch.Tensor], chunks: list[tuple[str, int, int, str]], sizes: list[int], place: Place
) -> None:
    """Give every rank the chunks that the others read."""
    if place.size == 1:
        return
    for source in range(place.size):
        for i in split(sizes, source, place.size):
            name, start, bytes_, _ = chunks[i]
            dist.broadcast(buffers[name][start : start + bytes_], src=source)
