"""One rank of a toy run: the product's recovery, saver, control and journal around steps that cost next to nothing."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from fgtrain.journal import Journal
from fgtrain.late import Here
from fgtrain.place import Place, agree, from_leader
from fgtrain.plan import share
from fgtrain.runstore import RunStore
from fgtrain.snapshot import load
from fgtrain.snapshot.control import Control
from fgtrain.snapshot.memory import memory_folders, rank_folder
from fgtrain.snapshot.save import Saver
from fgtrain.state import State
from fgtrain.step import StepReport, Wishes
from fgtrain.stores import open_store
from tests.testbed.toy.job import MICRO_BATCHES, RUN, Job
from tests.testbed.toy.state import BUFFERS, ToyState, problem

_PEER_TIMEOUT_S = 240.0


class WrongBytes(Exception):
    """A state was restored that is not that of its step."""


def join(job: Job, node: int, local_rank: int, meeting: Path) -> Place:
    size = job.nodes * job.gpus
    rank = node * job.gpus + local_rank
    if size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=_PEER_TIMEOUT_S),
        )
    return Place(rank, size, local_rank, torch.device("cpu"))


def work(job: Job, node: int, place: Place) -> None:
    """Train until the last step, or until asked to stop, from the newest state there is."""
    folder = job.node(node)
    journal = Journal(folder, place)
    runs = RunStore(open_store(job.store), RUN)
    memory = memory_folders(RUN, folder, RUN)

    def note(text: str) -> None:
        journal.event("note", text=text)

    state = ToyState()
    restored = load.newest(runs, place, memory, note)
    if restored:
        state.load(restored.tensors, restored.values)
        if wrong := problem(state) or ("values" if restored.values["square"] != state.step**2 else None):
            journal.event("wrong", text=wrong)
            raise WrongBytes(wrong)
        journal.recover(restored.lines)
    attempt = from_leader(runs.take_attempt(state.step, place.size) if place.leads else None, place)
    assert attempt is not None
    tier = restored.tier if restored else ""
    journal.event("attempt", attempt=attempt.attempt, step=state.step, world=place.size, nodes=job.nodes, tier=tier)
    saver = Saver(
        runs,
        place,
        attempt.attempt,
        [rank_folder(m, attempt.attempt, place.rank) for m in memory],
        slots=job.snapshots.slots,
        copies=job.snapshots.copies,
        determinism="samples",
        last=restored.base if restored else None,
        verified=bool(restored and restored.verified),
        note=note,
    )
    control = Control(job.snapshots, saver, runs, place, journal, BUFFERS, job.final_s)
    _loop(job, place, state, control, journal)
    control.last(cast(State, state), required=state.step == job.steps)
    saver.close()
    journal.event("end", step=state.step)


def _loop(job: Job, place: Place, state: ToyState, control: Control, journal: Journal) -> None:
    mine = share(MICRO_BATCHES, place.rank, place.size)
    stop = False
    while state.step < job.steps and not stop:
        started = time.monotonic()
        wishes = control.wishes(state.step + 1, stop=job.stop.exists())
        state.forward()
        mail = agree(torch.tensor([len(mine), *wishes], dtype=torch.float32))
        control.drain()
        state.update(int(mail[0].item()) // MICRO_BATCHES)
        agreed = Wishes(*(v > 0 for v in mail[1:].tolist()))
        ids = [(g, [(state.step, g)]) for g in mine]
        journal.step(state.step, 0.0, StepReport(Here([0.0]), 0.0, MICRO_BATCHES, agreed, ids, []))
        journal.event("did", step=state.step)
        stop = agreed.stop
        if not stop and state.step < job.steps:
            if (agreed.keep or agreed.save) and not agreed.full:
                journal.event("kept", step=state.step)
            control.after_step(cast(State, state), agreed)
        time.sleep(max(0.0, job.pace_s - (time.monotonic() - started)))  # the step's work
