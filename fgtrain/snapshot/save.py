"""Taking snapshots without stopping: stage this rank's share, upload it from another process, hear of commits later."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from fgtrain.errors import StoreUnavailable
from fgtrain.manifest import Manifest
from fgtrain.place import Place, agree, from_all, from_leader
from fgtrain.runstore import RunStore
from fgtrain.shards import Sharded
from fgtrain.snapshot.arena import FROZEN, Arena
from fgtrain.snapshot.exchange import Exchange
from fgtrain.snapshot.layout import Fingerprint, Layout, Tensors, fingerprint, is_dense
from fgtrain.snapshot.memory import forget_older
from fgtrain.snapshot.protocol import Abandon, Committed, Copied, Copy, Failed, Listening, Persist, Report, Stored
from fgtrain.snapshot.replicate import Peer, peer_of
from fgtrain.snapshot.staged import Header, Lines, Stretch
from fgtrain.snapshot.staging import Piece, make_stager, pieces
from fgtrain.snapshot.uploader import Start
from fgtrain.snapshot.uploads import Uploads

FINAL_TIMEOUT_S = 3600.0
_MEET_TIMEOUT_S = 60.0
_REHASH_EVERY = 20  # snapshots between two looks at what is believed not to have changed
_TURN_S = 1.0  # between two words of the ranks on what they wait for

Plan = tuple[tuple[Stretch, ...], list[Piece], list[Piece]]
"""Where a share goes, what to copy at once, what in the background."""


class Saver:
    """Takes the snapshots of one attempt; all ranks call together."""

    def __init__(
        self,
        runs: RunStore,
        place: Place,
        attempt: int,
        folders: Sequence[Path],
        *,
        slots: int,
        copies: bool,
        determinism: str,
        last: Manifest | None,
        verified: bool,
        inherited: frozenset[str] = frozenset(),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Stage in the first of `folders` with room, which belong to this rank and attempt. See `uploader.Start`.

        `copies`: keep a copy of each share on another node too.
        """
        self._runs, self._place, self._attempt, self._folders = runs, place, attempt, folders
        self._determinism = determinism
        self._base = last.name if last else None
        self._arena = Arena(folders, slots, note, pinned=place.device.type == "cuda")
        self._stager = make_stager(place.device)
        self._persisted = self._begun = 0
        self._layout: Layout | None = None
        self._exchange: Exchange | None = None
        self._fingerprint: Fingerprint = ()
        self._plans: dict[Fingerprint, dict[tuple[str, bool], Plan]] = {}
        self._frozen_staged = False
        self._frozen_crc32 = 0
        self._heard: list[Committed | Failed] = []
        self._fates: dict[int, Report] = {}  # the last word on the snapshot of a step
        self._start = Start(
            store=runs.store.url,
            run=runs.run,
            memory=str(folders[0].parent),
            attempt=attempt,
            rank=place.rank,
            parent=os.getpid(),
            last=self._base,
            verified=verified,
            host=os.environ.get("FGLAUNCH_ADDRESS", "127.0.0.1"),
            token=from_leader(secrets.token_hex(16), place) if copies else "",
            inherited=tuple(sorted(inherited)),
        )
        self._uploads = Uploads(self._start)
        self._copies = copies and place.size > 1
        self._met = not self._copies
        self._port: int | None = None  # where the uploader takes copies in

    def _meet(self) -> bool:
        """Learn where to send copies, and tell where this rank takes them in; False on a single node.

        At the first snapshot: until then, the uploaders start while training does.
        """
        start, self._met = self._start, True
        deadline = time.monotonic() + _MEET_TIMEOUT_S
        while self._port is None and time.monotonic() < deadline:
            self._turn()
        everyone = from_all((start.memory, start.host, self._port or 0), self._place)
        rank = peer_of(self._place.rank, [node for node, _, _ in everyone])
        if rank is None or not everyone[rank][2]:
            return False
        self._uploads.meet(Peer(everyone[rank][1], everyone[rank][2], start.token))
        return True

    @property
    def copy_s(self) -> float:
        """How long the last copy into host memory took, in seconds; 0 before the first."""
        return self._stager.copy_s

    # -- staging --------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether there is no slot for another snapshot now."""
        return self._arena.free() is None

    def begin(
        self, step: int, tensors: Tensors, buffers: set[str], values: dict[str, Any], lines: Lines, *, persist: bool
    ) -> None:
        """Begin a snapshot of the state after `step` steps; there must be room (not `full`).

        Args:
            step: optimizer steps done.
            tensors: the live state by group.
            buffers: names of tensors that the forward pass changes.
            values: what is not a tensor.
            lines: this rank's log lines that no commit has yet.
            persist: whether to upload it, or only keep it in this host's memory.
        """
        self._stager.finish()
        if not self._met:
            self._copies = self._meet()
        if persist:
            self._uploads.ensure(self._base)
        self._begun += 1
        if self._begun == 3 and self._place.local_rank == 0:  # by now every rank has staged a whole share
            for folder in self._folders:
                forget_older(folder.parent, self._attempt)
        rehash = persist and self._persisted % _REHASH_EVERY == 0
        self._fingerprint = fingerprint(tensors)
        shards = any(isinstance(t, Sharded) for some in tensors.values() for t in some.values())
        problem, rehash = self._prepare(tensors, shards, rehash)
        if problem:
            self._give_up(step, "", problem, persist=persist)
            return
        slot = self._arena.free()
        assert slot is not None
        if rehash:
            self._frozen_staged = False
        stretches, now, later = self._plan(slot, tensors, buffers)
        self._arena.fill(slot)
        if shards:
            self._run_exchange(tensors, stretches)
        header = self._header(step, values, lines, stretches)
        copy = self._copies and not self._arena.copying and not self._arena.uploading
        if copy:
            self._arena.copying.add(slot)
        if persist:
            self._arena.uploading.add(slot)
            self._persisted += 1
            self._fates.clear()
        self._stager.begin(now, later, lambda: self._staged(slot, header, persist=persist, rehash=rehash, copy=copy))

    def drain(self) -> None:
        """Return once the optimizer may change the state; the time this takes is the snapshot's stall."""
        self._stager.drain()

    def _arrange(self, tensors: Tensors) -> bool:
        """Lay the state out anew if it is not what it was; tells whether it did.

        Raises:
            StoreUnavailable: there is no room for shares of that size.
        """
        if self._layout is not None and (self._fingerprint in self._plans or self._layout.fits(tensors)):
            return False
        layout = Layout(tensors)
        shares = layout.share(self._place.rank, self._place.size)
        moving = sum(stop - start for group, (start, stop) in shares.items() if group != FROZEN)
        start, stop = shares.get(FROZEN, (0, 0))
        self._plans.clear()
        self._exchange = None
        self._layout = None  # should there be no room, the next snapshot asks again
        self._arena.reserve(moving, stop - start)
        self._layout = layout
        return True

    def _prepare(self, tensors: Tensors, shards: bool, rehash: bool) -> tuple[str, bool]:
        """Lay the state out; returns what stands against a snapshot, and whether the frozen group is staged anew.

        Ranks that exchange shards do so together or not at all.
        """
        problem = ""
        try:
            rehash |= self._arrange(tensors)
        except StoreUnavailable as error:
            problem = str(error)
        if not shards:
            return problem, rehash
        wishes = [bool(problem), self._exchange is None, rehash or not self._frozen_staged]
        failed, anew, rehash = map(bool, agree(torch.tensor(wishes, dtype=torch.int32), dist.ReduceOp.MAX).tolist())
        if failed:
            return problem or "another rank has no room for its share", rehash
        if anew:
            assert self._layout is not None
            self._exchange = Exchange(self._layout, tensors, self._place)
        return "", rehash

    def _run_exchange(self, tensors: Tensors, stretches: tuple[Stretch, ...]) -> None:
        assert self._exchange is not None
        targets = {
            s.group: self._arena.view(s.file.removesuffix(".bytes"))[s.offset : s.offset + s.stop - s.start]
            for s in stretches
        }
        self._exchange.run(tensors, targets, {FROZEN} if self._frozen_staged else set())

    def _plan(self, slot: str, tensors: Tensors, buffers: set[str]) -> Plan:
        """Return where this rank's share goes, what to copy at once, and what in the background.

        Tensors stay where they are from step to step, and so does the plan of a slot.
        """
        if self._fingerprint not in self._plans:
            self._plans = {self._fingerprint: {}}
        known, key = self._plans[self._fingerprint], (slot, self._frozen_staged)
        if key in known:
            return known[key]
        plan = self._new_plan(slot, tensors, buffers)
        if all(is_dense(t) for some in tensors.values() for t in some.values()):  # else it copies copies
            known[key] = plan
        return plan

    def _new_plan(self, slot: str, tensors: Tensors, buffers: set[str]) -> Plan:
        layout = self._layout
        assert layout is not None
        stretches, now, later, offset = [], [], [], 0
        for group, (start, stop) in layout.share(self._place.rank, self._place.size).items():
            still = group == FROZEN
            file, at = (FROZEN, 0) if still else (slot, offset)
            view = self._arena.view(file)[at : at + stop - start]
            stretches.append(Stretch(group, start, stop, f"{file}.bytes", at))
            offset += 0 if still else stop - start
            if still and self._frozen_staged:
                continue
            early = {n for n in tensors[group] if n in buffers}
            now += pieces(layout, tensors, group, start, stop, view, early)
            later += pieces(layout, tensors, group, start, stop, view, set(tensors[group]) - early)
        return tuple(stretches), now, later

    def _header(self, step: int, values: dict[str, Any], lines: Lines, stretches: tuple[Stretch, ...]) -> Header:
        layout = self._layout
        assert layout is not None
        return Header(
            run=self._runs.run,
            attempt=self._attempt,
            step=step,
            rank=self._place.rank,
            world=self._place.size,
            base=self._base,
            determinism=self._determinism,
            chunk_bytes=layout.chunk_bytes,
            group_bytes=layout.group_bytes,
            spans=layout.spans if self._place.leads else {},
            values=values if self._place.leads else {},
            stretches=stretches,
            lines=lines,
            crc32={},
        )

    def _staged(self, slot: str, header: Header, *, persist: bool, rehash: bool, copy: bool) -> None:
        """Declare a slot complete, in the thread that copied: seal it, and hand it to the uploader."""
        try:
            self._arena.filled(slot, msgspec.structs.replace(header, crc32=self._crc32(header.stretches)))
        except OSError as error:  # of the header: its folder is full
            self._uploads.answer(Copied(header.step, slot, ""))
            self._give_up(header.step, slot, f"{self._arena.folder}: {error.strerror}", persist=persist)
            return
        folder = str(self._arena.folder)
        if persist:
            self._uploads.order(Persist(folder, slot, header.step, rehash))
        if copy:
            self._uploads.order(Copy(folder, slot, header.step))

    def _crc32(self, stretches: tuple[Stretch, ...]) -> dict[str, int]:
        found = {}
        for file in {s.file for s in stretches}:
            name = file.removesuffix(".bytes")
            used = max(s.offset + s.stop - s.start for s in stretches if s.file == file)
            if name != FROZEN:
                found[file] = self._arena.crc32(name, used)
                continue
            if not self._frozen_staged:
                self._frozen_staged, self._frozen_crc32 = True, self._arena.crc32(name, used)
            found[file] = self._frozen_crc32
        return found

    def _give_up(self, step: int, slot: str, reason: str, *, persist: bool) -> None:
        """A share that could not be staged: count it, and let no rank wait for it."""
        if persist:
            self._uploads.order(Abandon(step, slot, reason))
        else:
            self._uploads.answer(Failed(step, slot, reason, False))

    # -- what becomes of them -------------------------------------------------------------------------------------

    def poll(self) -> list[Committed | Failed]:
        """Return, in order, the commits and failures heard of since last asked (this rank's view); never waits."""
        while (report := self._uploads.report()) is not None:
            self._take(report)
        self._uploads.mend(self._base)
        heard, self._heard = self._heard, []
        return heard

    def _take(self, report: Report) -> None:
        match report:
            case Stored(slot=slot):
                self._arena.uploading.discard(slot)
                if not self._place.leads:
                    self._fates[report.step] = report
            case Failed(slot=slot):
                self._arena.uploading.discard(slot)
                self._fates[report.step] = report
                self._heard.append(report)
                self._uploads.ensure(self._base)  # if it died: rank 0 must hear that this share will not come
            case Listening(port=port):
                self._port = port
            case Copied(slot=slot):
                self._arena.copying.discard(slot)
            case Committed(name=name):
                self._base = name
                self._fates[report.step] = report
                self._heard.append(report)

    def _turn(self) -> None:
        """Hear one report, or pass a turn of waiting."""
        self._uploads.mend(self._base)
        if (report := self._uploads.report(_TURN_S)) is not None:
            self._take(report)

    def make_room(self, timeout_s: float = FINAL_TIMEOUT_S) -> None:
        """Wait until every rank has a slot for another snapshot.

        Raises:
            StoreUnavailable: some rank has none in time.
        """
        self._stager.finish()
        deadline = time.monotonic() + timeout_s
        while True:
            ranks = from_all((self.full, time.monotonic() > deadline), self._place)
            if not any(full for full, _ in ranks):
                return
            if any(late for _, late in ranks):
                raise StoreUnavailable(f"no room for a snapshot: earlier ones are not stored after {timeout_s:g} s")
            self._turn()

    def settle(self, step: int, timeout_s: float = FINAL_TIMEOUT_S) -> Committed:
        """Wait until every rank knows that the snapshot of `step` is committed; returns what rank 0 heard.

        Raises:
            StoreUnavailable: it failed, or takes too long.
        """
        self._stager.finish()
        deadline = time.monotonic() + timeout_s
        while True:
            ranks = from_all((self._fates.get(step), time.monotonic() > deadline), self._place)
            fates = [fate for fate, _ in ranks]
            if isinstance(fates[0], Committed):
                if not self._place.leads and fates[self._place.rank] != fates[0]:
                    self._take(fates[0])
                return fates[0]
            for fate in fates:
                if isinstance(fate, Failed):
                    raise StoreUnavailable(f"snapshot of step {step}: {fate.reason}")
            if any(late for _, late in ranks):
                raise StoreUnavailable(f"snapshot of step {step}: not committed within {timeout_s:g} s")
            self._turn()

    def close(self) -> None:
        """Let the uploader go."""
        self._stager.finish()
        self._uploads.close()
