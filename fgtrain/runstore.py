"""What a run keeps in its store, and under which keys.

runs/<run>/run.json                      recipe, plan, digests: written once, by create
runs/<run>/strategy.json                 how the state lies over ranks from now on, if not as run.json has it
runs/<run>/status.json                   last word of the supervisor
runs/<run>/supervision.json              how to supervise
runs/<run>/supervisors/<number>.json     who supervises, and what it has started: taken by create, highest wins
runs/<run>/excluded/<node>.json          a node that this run does not use any more
runs/<run>/stop                          present: someone asked the run to stop
runs/<run>/limits.json                   what the run may cost at most
runs/<run>/spend.json                    what it has cost so far
runs/<run>/attempts/<attempt>.json       one incarnation of the workers: taken by create, highest wins
runs/<run>/micro.json                    micro-batches that were found to fit the devices (`fgtrain.fitting`)
runs/<run>/claims/<attempt>/<token>      who believes to be that attempt
runs/<run>/manifests/<step>-<attempt>    one committed snapshot
runs/<run>/abandoned/<step>-<attempt>    one that `resume --from` an older step has set aside
runs/<run>/fence.json                    the attempt that did so: what earlier ones hold in memory is void
runs/<run>/parent                        the weights that the run began with: another run's manifest, less the rest
runs/<run>/errors/<attempt>-<rank>.json  why a worker gave up
runs/<run>/notices/<node>-<ms>-<hash>    what a node was told of its end (`fgtrain.notice.NoticeRecord`)
runs/<run>/logs/<stream>/<offset>        a stretch of what a rank, or a node's agent, wrote (`fgtrain.logs`)
runs/<run>/...                           what is left for the user: metrics.jsonl, weights.safetensors, tensorboard/
chunks/<hh>/<digest>                     contents, shared by all runs of the store
trash/<hh>/<digest>                      contents that a collection is about to delete
housekeeping/<id>                        someone prunes or collects
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from fgtrain import manifest as manifests
from fgtrain import stores
from fgtrain.errors import Corrupt, KeyExists, KeyMissing
from fgtrain.manifest import Manifest
from fgtrain.parts import from_json, to_json
from fgtrain.plan import Plan, World
from fgtrain.recipe import Recipe, replace
from fgtrain.stores import Store
from fgtrain.strategies import Strategy

T = TypeVar("T")

_NAME_BYTES = 200  # a file name may have 255


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: everything a node needs to know, and where it came from.

    `init_from` names the snapshot whose weights the run begins with, as `run@step-attempt`; `init_skip` holds patterns
    of tensors that are not taken from there. `fit`: search for the largest micro-batch that fits before the first step.
    `profile`: how many steps to profile. `id` tells the run from others of its name, in other stores or before it.
    """

    name: str
    created: float
    recipe: Recipe
    recipe_digest: str
    recipe_file: str
    overrides: tuple[str, ...]
    plan: Plan
    world: World
    data_digest: str
    cwd: str
    code: dict[str, str]
    environment: dict[str, str]
    init_from: str | None = None
    init_skip: tuple[str, ...] = ()
    fit: bool = False
    profile: int = 0
    id: str = ""

    @property
    def identity(self) -> str:
        """The run's `id`; of a run from before there were any, the time that it was made."""
        return self.id or f"{self.created:.6f}"


class Spread(msgspec.Struct, frozen=True):
    """`strategy.json`: what a run was told after it began."""

    strategy: Strategy


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One incarnation of the workers: which step it started from, on how many ranks, when (Unix seconds)."""

    attempt: int
    step: int
    world: int
    started: float


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that trained nothing and only voided all before it: the run goes on from the snapshot of `step`."""

    attempt: int
    step: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a worker gave up. `time` in Unix seconds; attempt 0: it failed before the attempt began.

    Kinds: "user" (not worth another try), "peer" (it lost the others), "fitted" (it wants to start again with smaller
    micro-batches), "outage" (a store could not be reached), "oom" (memory ran out), "error" (anything else).
    `step`: the one it was taking, from 0; None: it took none. `folder`: its node's working folder.
    """

    attempt: int
    rank: int
    time: float
    kind: str
    message: str
    traceback: str
    step: int | None = None
    folder: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended: its last step, the digest of its weights, its last evaluation and its best."""

    step: int
    weights: str
    last: dict[str, float]
    best: dict[str, float]
    bad_images: int


class RunStore:
    """One run's corner of a store."""

    def __init__(self, store: Store, run: str) -> None:
        self.store = store
        self.run = run
        self.prefix = f"runs/{run}/"

    def key(self, name: str) -> str:
        """Return the store key of one of this run's objects."""
        return self.prefix + name

    def read(self, name: str, type_: type[T]) -> T:
        """Read a JSON object.

        Raises:
            KeyMissing: it is not there.
            Corrupt: it cannot be read as `type_`.
        """
        data = self.store.get(self.key(name))
        try:
            return from_json(data, type_)
        except (msgspec.DecodeError, TypeError) as error:
            raise Corrupt(f"{self.key(name)}: {error}") from error

    def read_all(self, folder: str, type_: type[T]) -> list[T]:
        """Read every JSON object of a folder, in key order."""
        start = len(self.prefix)
        return [self.read(e.key[start:], type_) for e in self.store.list(self.key(folder + "/"))]

    def write(self, name: str, value: Any) -> None:
        """Write a JSON object, replacing the old one."""
        self.store.put(self.key(name), to_json(value))

    def create(self, name: str, value: Any) -> None:
        """Write a JSON object that must not exist yet.

        Raises:
            KeyExists: it does.
        """
        self.store.create(self.key(name), to_json(value))

    def exists(self, name: str) -> bool:
        """Tell whether an object is there."""
        try:
            self.store.head(self.key(name))
        except KeyMissing:
            return False
        return True

    def run_file(self) -> RunFile:
        """Return `run.json`, with the strategy that holds now.

        Raises:
            KeyMissing, Corrupt
        """
        run = self.read("run.json", RunFile)
        with suppress(KeyMissing):
            spread = self.read("strategy.json", Spread)
            return msgspec.structs.replace(run, recipe=replace(run.recipe, strategy=spread.strategy))
        return run

    # -- attempts -------------------------------------------------------------------------------------------------

    def attempts(self) -> list[int]:
        """Return the numbers of all attempts so far, rising."""
        return [int(e.key.rsplit("/", 1)[1].removesuffix(".json")) for e in self.store.list(self.key("attempts/"))]

    def take_attempt(self, step: int, world: int) -> Attempt:
        """Become the newest attempt; every older one may no longer commit.

        A number is taken by a conditional create. Where the vendor ignores the condition, several callers may believe
        that they took it; so each then writes a claim under a name of its own and lists the claims, and who sees
        another's takes a higher number. Of two callers one lists after both have written: no number is used twice.
        Manifests and part lists bear the number. So also on such a store two supervisors of one run fence each other,
        in turns, but no commit ever replaces another attempt's; all that is lost is the steps of the fenced one.
        """
        number = max(self.attempts(), default=0) + 1
        while True:
            attempt = Attempt(attempt=number, step=step, world=world, started=time.time())
            try:
                self.create(f"attempts/{number:05d}.json", attempt)
            except KeyExists:
                number += 1
                continue
            if self._claim(number):
                return attempt
            number += random.randint(1, 3)  # two that gave way to each other must not meet again for ever

    def _claim(self, number: int) -> bool:
        """Claim an attempt's number; False if somebody else does too."""
        folder = self.key(f"claims/{number:05d}/")
        own = folder + secrets.token_hex(8)
        self.store.put(own, b"")
        return [e.key for e in self.store.list(folder)] == [own]

    def fence(self) -> int:
        """Return the newest attempt that voided what those before it hold in memory; 0 if none did."""
        try:
            return self.read("fence.json", Fence).attempt
        except KeyMissing:
            return 0

    def raise_fence(self, step: int) -> None:
        """Void all attempts so far: they may no longer commit, and what they hold in memory is not gone on from."""
        attempt = self.take_attempt(step, world=0)
        self.write("fence.json", Fence(attempt=attempt.attempt, step=step))

    # -- manifests ------------------------------------------------------------------------------------------------

    def manifest_names(self) -> list[str]:
        """Return the names of all committed manifests, rising by step, then attempt."""
        return [e.key.rsplit("/", 1)[1] for e in self.store.list(self.key("manifests/"))]

    def newest_step(self) -> int:
        """Return the step of the newest committed snapshot, -1 if there is none."""
        names = self.manifest_names()
        return int(names[-1].partition("-")[0]) if names else -1

    def abandoned_names(self) -> list[str]:
        """Return the names of the manifests that were set aside, rising by step, then attempt."""
        return [e.key.rsplit("/", 1)[1] for e in self.store.list(self.key("abandoned/"))]

    def manifest(self, name: str) -> Manifest:
        """Read one manifest.

        Raises:
            KeyMissing, Corrupt
        """
        return manifests.decode(self.store.get(self.key(f"manifests/{name}")))

    def manifests_newest_first(self) -> Iterator[Manifest | Corrupt]:
        """Yield the run's manifests from the newest, in place of an unreadable one why it is so."""
        for name in reversed(self.manifest_names()):
            try:
                yield self.manifest(name)
            except Corrupt as error:
                yield Corrupt(f"snapshot {name}: {error}")

    def commit(self, manifest: Manifest) -> None:
        """Commit a snapshot.

        Raises:
            KeyExists: this attempt has committed this step already.
        """
        self.store.create(self.key(f"manifests/{manifest.name}"), manifests.encode(manifest))

    # -- chunks ---------------------------------------------------------------------------------------------------

    def put_chunk(self, data: bytes | memoryview) -> str:
        """Store contents and return their digest."""
        digest = manifests.chunk_digest(data)
        self.store.put(manifests.chunk_key(digest), data)
        return digest

    def get_chunk(self, digest: str) -> bytes:
        """Read and verify contents, also those that a collection has set aside.

        Raises:
            Corrupt: missing, truncated or altered.
        """
        data = self._found(digest, self.store.get)
        if manifests.chunk_digest(data) != digest:
            raise Corrupt(f"chunk {digest[:12]} is not what was written")
        return data

    def fetch_chunk(self, digest: str, into: memoryview) -> None:
        """Read contents of a known size into memory and verify them. See `get_chunk`.

        Raises:
            Corrupt: missing, of another size, or altered.
        """
        found = self._found(digest, lambda key: stores.fetch(self.store, key, into))
        if found != len(into):
            raise Corrupt(f"chunk {digest[:12]} has {found} bytes, not {len(into)}")
        if manifests.chunk_digest(into) != digest:
            raise Corrupt(f"chunk {digest[:12]} is not what was written")

    def check_size(self, digest: str, bytes_: int) -> None:
        """Look whether contents are there and as long as they should be; they are not read.

        Raises:
            Corrupt: missing, or of another size.
        """
        found = self._found(digest, self.store.head).bytes_
        if found != bytes_:
            raise Corrupt(f"chunk {digest[:12]} has {found} bytes, not {bytes_}")

    def _found(self, digest: str, ask: Callable[[str], T]) -> T:
        """Ask about a chunk where it should be, else in the trash; it may be moved either way meanwhile."""
        key = manifests.chunk_key(digest)
        for place in (key, manifests.trash_key(digest), key):
            with suppress(KeyMissing):
                return ask(place)
        raise Corrupt(f"chunk {digest[:12]} is missing")

    def log_lines(self, manifest: Manifest, log: str) -> bytes:
        """Return the JSON lines of one log over the committed lineage that ends at `manifest`."""
        return b"".join(self.get_chunk(s.chunk) for s in manifest.logs.get(log, ()))


def is_name(name: str) -> bool:
    """Tell whether a run may be called this: it becomes a folder, a part of keys and a word on command lines."""
    return bool(re.fullmatch(r"\w[\w.-]{0,99}", name)) and len(name.encode()) <= _NAME_BYTES


def run_names(store: Store) -> list[str]:
    """Return the names of the runs that a store holds."""
    return sorted({e.key.split("/")[1] for e in store.list("runs/") if e.key.endswith("/run.json")})
