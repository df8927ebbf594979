"""One rank of the snapshot benchmark: `python -m benchmarks.snapshots.job SETTINGS` under torchrun; rank 0 prints JSON.

All methods save the same state from the same process, in turn, round after round. Blocked time is what training waits:
for ours, beginning plus draining, with a forward and a backward pass in between; for the others, the call.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from benchmarks.snapshots import raw
from fgtrain import place as places
from fgtrain.ema import MovingAverage
from fgtrain.freeze import freeze, train_mode
from fgtrain.place import Place, from_leader
from fgtrain.runstore import RunStore
from fgtrain.snapshot import load
from fgtrain.snapshot.save import Saver
from fgtrain.state import State
from fgtrain.stores import open_store
from fgtrain.torchvision_compat import import_timm

_RESTORES = 3  # a round: they are short, and the memory of a virtual machine is now and then slow at first use


class Settings(msgspec.Struct, frozen=True):
    """What to measure: `store` for ours, `bucket` and `prefix` for the peers' objects, rounds of each."""

    model: str
    image: int
    batch: int
    frozen: bool
    store: str
    bucket: str
    prefix: str
    folder: str
    rounds: int
    peer_rounds: int


def build(settings: Settings) -> State:
    """Make a network that has taken one AdamW step."""
    torch.manual_seed(0)
    net = import_timm().create_model(settings.model, pretrained=False, num_classes=200)
    if settings.frozen:
        freeze(net, ["*"], [net.get_classifier()])
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    train_mode(net)
    average: MovingAverage | None = None
    return State(net, optimizer, torch.amp.GradScaler("cpu", enabled=False), average)


class Trainer:
    """Takes steps, as cheap ones as the model allows: every method sees the same."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._images = torch.randn(settings.batch, 3, settings.image, settings.image)
        self._labels = torch.zeros(settings.batch, dtype=torch.int64)
        self._state = state

    def gradients(self) -> None:
        """Forward and backward."""
        self._state.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self._state.net(self._images), self._labels).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the weights."""
        self._state.optimizer.step()
        self._state.step += 1

    def step_s(self) -> float:
        """Take a step; returns its seconds."""
        started = time.perf_counter()
        self.gradients()
        self.update()
        return time.perf_counter() - started


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took on the slowest rank, in seconds, and what it returned."""
    dist.barrier()
    started = time.perf_counter()
    value = call()
    took = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return took.item(), value


class Ours:
    """This project's snapshots."""

    def __init__(self, settings: Settings, place: Place, state: State, trainer: Trainer) -> None:
        self.runs = RunStore(open_store(settings.store), f"bench-{settings.model}-{settings.frozen}")
        attempt = from_leader(self.runs.take_attempt(0, place.size) if place.leads else None, place)
        assert attempt is not None
        folder = Path(settings.folder) / "memory" / f"rank{place.rank}"
        self._saver = Saver(
            *(self.runs, place, attempt.attempt, [folder]),
            slots=3,
            copies=False,
            determinism="samples",
            last=None,
            verified=False,
        )
        self._state, self._trainer = state, trainer

    def snapshot(self, *, busy: bool) -> dict[str, Any]:
        """Take one of a state that has just changed; returns seconds and bytes.

        `busy`: train on while it is copied and uploaded; else nothing else runs, as beside the raw client.
        """
        state = self._state
        self._trainer.gradients()
        self._trainer.update()
        self._saver.make_room()
        begun, _ = timed(self._begin)
        step = state.step
        if busy:
            self._trainer.gradients()
        drained, _ = timed(self._saver.drain)
        if busy:
            self._trainer.update()
        steps = [self._trainer.step_s() for _ in range(2 if busy else 0)]
        commit = self._saver.settle(step)
        return {
            "stall": begun + drained,
            "commit": commit.seconds,
            "bytes_new": commit.bytes_new,
            "bytes_shared": commit.bytes_shared,
            "busy_steps": steps,
        }

    def _begin(self) -> None:
        state = self._state
        self._saver.begin(state.step, state.tensors(), state.buffers(), state.values(), {}, persist=True)

    def close(self) -> None:
        """Let the uploader go."""
        self._saver.close()


def copy_floor(state: State, size: int) -> Callable[[], None]:
    """Return one memcpy of this rank's share of what changes."""
    bytes_ = sum(t.nbytes for g, named in state.tensors().items() if g != "frozen" for t in named.values()) // size
    source, target = torch.ones(bytes_, dtype=torch.uint8), torch.zeros(bytes_, dtype=torch.uint8)

    def copy() -> None:
        target.copy_(source)

    return copy


def peers(settings: Settings, state: State) -> dict[str, Callable[[int], Any]]:
    """Return the stock methods: each saves round i, and returns what must finish before the next."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    async_, save = vars(dcp)["async_save"], vars(dcp)["save"]

    def whole() -> dict[str, Any]:
        return {"model": state.net.state_dict(), "optim": state.optimizer.state_dict()}

    def path(kind: str, i: int) -> FsspecWriter:
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        return FsspecWriter(f"s3://{settings.bucket}/{settings.prefix}/{kind}{i}", client_kwargs=options)

    stager = DefaultStager(StagingOptions(False, False, False, False))

    def async_save(kind: str, how: AsyncCheckpointerType) -> Callable[[int], Any]:
        group = dist.new_group(backend="gloo")  # its collectives run beside training's
        options = {"process_group": group, "async_checkpointer_type": how, "async_stager": stager}
        return lambda i: async_(whole(), storage_writer=path(kind, i), **options)

    def torch_save(i: int) -> None:
        if dist.get_rank() == 0:
            file = io.BytesIO()
            torch.save(whole(), file)
            file.seek(0)
            raw.client().put_object(Bucket=settings.bucket, Key=f"{settings.prefix}/torch{i}", Body=file)
        dist.barrier()

    return {
        "torch.save + boto3": torch_save,
        "dcp.save": lambda i: save(whole(), storage_writer=path("dcp", i)),
        "dcp.async_save, thread": async_save("thread", AsyncCheckpointerType.THREAD),
        "dcp.async_save, process": async_save("process", AsyncCheckpointerType.PROCESS),
    }


def finish(pending: Any) -> None:
    """Wait for what an asynchronous save left behind."""
    response = getattr(pending, "upload_completion", pending)
    if response is not None and hasattr(response, "result"):
        response.result()


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """Run all rounds."""
    state = build(settings)
    trainer = Trainer(settings, state)
    quiet = [trainer.step_s() for _ in range(4)][1:]
    ours = Ours(settings, place, state, trainer)
    copy = copy_floor(state, place.size)
    found: dict[str, Any] = {"ours": [], "training": [], "floor": [], "raw_put": [], "quiet": quiet}
    found |= {"raw_get": [], "restore": [], "blocked": {}, "total": {}}
    ours.snapshot(busy=False)  # the first one uploads what is frozen too
    for i in range(settings.rounds):
        found["ours"].append(ours.snapshot(busy=False))
        found["raw_put"].append(raw.put_s(settings, ours.runs, place, i))
        found["floor"].append(timed(copy)[0])
        found["training"].append(ours.snapshot(busy=True))
        found["quiet"].append(trainer.step_s())
    names = from_leader(ours.runs.manifest_names() if place.leads else [], place)
    for _ in range(settings.rounds * _RESTORES):
        found["raw_get"].append(raw.get_s(ours.runs, place))
        found["restore"].append(timed(lambda: load.from_store(ours.runs, place, names, print))[0])
    found["rss_ours"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ours.close()
    stock = peers(settings, state) if settings.peer_rounds else {}
    for i in range(settings.peer_rounds):
        for name, save in stock.items():
            blocked, pending = timed(lambda i=i, save=save: save(i))  # type: ignore[misc]
            rest, _ = timed(lambda pending=pending: finish(pending))  # type: ignore[misc]
            found["blocked"].setdefault(name, []).append(blocked)
            found["total"].setdefault(name, []).append(blocked + rest)
            trainer.step_s()
    found["state_bytes"] = sum(t.nbytes for named in state.tensors().values() for t in named.values())
    found["rss_all"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def main() -> None:
    """Measure, and print on rank 0."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    place = places.join(600)
    found = measure(settings, place)
    if place.leads:
        print("RESULT " + json.dumps(found), flush=True)
    places.leave()


if __name__ == "__main__":
    main()
