"""Known defects of torch.distributed.checkpoint's own writer and reader, and the same scenes with ours.

A test marked `stock_defect` shows that torch still has the defect. When one fails, torch has mended it: drop the
defect from docs/dcp.md and from here. The test after it puts our pair through the same, and must always pass.
"""

from __future__ import annotations

import errno
import io
import pickle
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions

from fgtrain.dcp import StoreReader, StoreWriter, checkpoints
from fgtrain.dcp.record import chunk_key, record_key
from fgtrain.errors import Corrupt, StoreUnavailable, UserError
from fgtrain.sealed import seal, unseal
from fgtrain.stores.file import FileStore
from fgtrain.stores.memory import MemoryStore
from tests.testbed.checkpoints import CheckpointException, assert_same, cause, load, save
from tests.testbed.faulty_store import Fault, FaultyStore, first_of
from tests.testbed.ranks import on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:Detected an existing")

TIMEOUT_S = 240.0


def still(defect: bool, what: str) -> None:
    assert defect, f"torch mended this: {what}. Drop the note in docs/dcp.md, and this test"


def stock_save(state: dict[str, Any], folder: Path, **options: Any) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(folder), **options)


def stock_load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    dcp.load(state, storage_reader=FileSystemReader(folder))
    return state


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1000,), value), "b": torch.full((1000,), value)}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


# -- (a) a failed writer thread still commits ---------------------------------------------------------------------


class DiskFullInOneThread(FileSystem):
    """No space for what the second writer thread opens; the first one's file waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = threading.Event()

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[io.IOBase, None, None]:
        if threading.current_thread() is not threading.main_thread():
            self.failed.set()
            raise OSError(errno.ENOSPC, "no space left on device")
        assert self.failed.wait(TIMEOUT_S)
        with super().create_stream(path, mode) as stream:
            yield stream


@pytest.mark.stock_defect
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stock_commits_though_a_writer_thread_failed(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path / "ck", thread_count=2)
    writer.fs = DiskFullInOneThread()
    try:
        dcp.save(weights(1.0), storage_writer=writer)
    except CheckpointException:
        still(False, "a failed writer thread fails the save")
    still((tmp_path / "ck/.metadata").exists(), "a failed writer thread keeps the checkpoint from being committed")
    still(isinstance(cause(lambda: stock_load(weights(0.0), tmp_path / "ck")), KeyError), "all of it can be loaded")


def test_a_failed_upload_never_commits(store: FileStore) -> None:
    faulty = FaultyStore(store, first_of("put", Fault.REFUSED))
    assert isinstance(cause(lambda: save(weights(1.0), faulty, "first", threads=2)), StoreUnavailable)
    assert checkpoints(store, "job") == []


# -- (b) overwriting destroys the previous checkpoint -------------------------------------------------------------


class Killed(DefaultSavePlanner):
    """The process dies when it comes to the second tensor."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == "b":
            raise KeyboardInterrupt
        return super().resolve_data(write_item)


@pytest.mark.stock_defect
def test_stock_save_in_place_destroys_the_previous_checkpoint(tmp_path: Path) -> None:
    stock_save(weights(1.0), tmp_path)
    assert_same(stock_load(weights(0.0), tmp_path), weights(1.0))
    with pytest.raises(CheckpointException):
        stock_save(weights(2.0), tmp_path, planner=Killed())
    still((tmp_path / ".metadata").exists(), "an overwrite that fails leaves no checkpoint")
    try:
        found = stock_load(weights(0.0), tmp_path)
    except CheckpointException:
        return  # neither the old one nor the new one
    still(not torch.equal(found["b"], weights(1.0)["b"]), "an overwrite that fails leaves the previous checkpoint")


def test_a_save_that_dies_leaves_the_previous_checkpoint(store: FileStore) -> None:
    save(weights(1.0), store, "first")
    for name in ("first", "second"):
        with pytest.raises(CheckpointException):
            save(weights(2.0), store, name, planner=Killed())
        assert_same(load(weights(0.0), store), weights(1.0))


# -- (c) a reused staging buffer mixes two steps ------------------------------------------------------------------


class SlowUpload(DefaultSavePlanner):
    """Comes to the second tensor only when the next save has been staged."""

    def __init__(self) -> None:
        super().__init__()
        self.halfway = threading.Event()
        self.staged_again = threading.Event()

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == "b":
            self.halfway.set()
            assert self.staged_again.wait(TIMEOUT_S)
        return super().resolve_data(write_item)


def save_two_steps(writers: list[Any], stager: AsyncStager | None) -> list[Any]:
    """Save step 1, train on while it uploads, save step 2; the futures of both."""
    state, slow = weights(1.0), SlowUpload()
    planners = (slow, DefaultSavePlanner())
    futures = []
    for writer, planner in zip(writers, planners, strict=True):
        answer = dcp.async_save(state, storage_writer=writer, planner=planner, async_stager=stager)
        futures.append(getattr(answer, "upload_completion", answer))
        assert slow.halfway.wait(TIMEOUT_S)
        for tensor in state.values():
            tensor.fill_(2.0)
    slow.staged_again.set()
    return futures


@pytest.fixture
def reused() -> Generator[DefaultStager, None, None]:
    """One stager for all saves, as its documentation has it for speed; the options that need no GPU."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    yield stager
    stager.close()


@pytest.mark.stock_defect
def test_stock_mixes_two_steps_in_a_reused_staging_buffer(tmp_path: Path, reused: DefaultStager) -> None:
    for future in save_two_steps([FileSystemWriter(tmp_path / step) for step in "12"], reused):
        future.result(TIMEOUT_S)
    found = stock_load(weights(0.0), tmp_path / "1")
    still({found["a"][0].item(), found["b"][0].item()} == {1.0, 2.0}, "a buffer in flight is not staged to again")


@pytest.mark.stock_defect
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FileSystemWriter's own cache is pinned memory: needs a GPU")
def test_stock_mixes_two_steps_in_the_writers_own_cache(tmp_path: Path) -> None:
    first, second = (FileSystemWriter(tmp_path / step, cache_staged_state_dict=True) for step in "12")
    second.stage = first.stage  # type: ignore[method-assign]  # one cache, as of one writer that is kept
    for future in save_two_steps([first, second], None):
        future.result(TIMEOUT_S)
    found = stock_load(weights(0.0), tmp_path / "1")
    still({found["a"][0].item(), found["b"][0].item()} == {1.0, 2.0}, "a buffer in flight is not staged to again")


def test_two_saves_in_flight_hold_a_step_each(store: FileStore) -> None:
    for future in save_two_steps([StoreWriter(store, "job", step) for step in "12"], None):
        future.result(TIMEOUT_S)
    for step in "12":
        assert_same(load(weights(0.0), store, step), weights(float(step)))


def test_a_save_whose_buffer_was_reused_is_not_committed(store: FileStore, reused: DefaultStager) -> None:
    first, second = save_two_steps([StoreWriter(store, "job", step) for step in "12"], reused)
    second.result(TIMEOUT_S)
    error = cause(lambda: first.result(TIMEOUT_S))
    assert isinstance(error, UserError)
    assert "a changed while it was being saved" in str(error)
    assert checkpoints(store, "job") == ["2"]
    assert_same(load(weights(0.0), store), weights(2.0))


# -- (d) per-rank values under one key are deduplicated -----------------------------------------------------------


def stock_per_rank(rank: int, folder: str) -> int:
    state = {"cursor": torch.tensor([100 + rank])}
    dcp.save(state, storage_writer=FileSystemWriter(folder))
    dist.barrier()
    state["cursor"].zero_()
    dcp.load(state, storage_reader=FileSystemReader(folder))
    return int(state["cursor"].item())


def our_per_rank(rank: int, folder: str) -> tuple[str, int]:
    writer = StoreWriter(folder, "job")
    try:
        dcp.save({"cursor": torch.tensor([100 + rank])}, checkpoint_id="first", storage_writer=writer)
        refused = ""
    except CheckpointException as error:
        refused = str(error)
    state = {f"cursor.{rank}": torch.tensor([100 + rank])}
    dcp.save(state, checkpoint_id="second", storage_writer=writer)
    state[f"cursor.{rank}"].zero_()
    dcp.load(state, storage_reader=StoreReader(folder, "job"))
    return refused, int(state[f"cursor.{rank}"].item())


@pytest.mark.train
@pytest.mark.stock_defect
def test_stock_gives_every_rank_the_value_of_one(tmp_path: Path) -> None:
    found = on_ranks(2, stock_per_rank, str(tmp_path))
    still(found != [100, 101], "each rank gets back what it saved")
    still(found[0] == found[1], "no rank silently gets another's value")


@pytest.mark.train
def test_values_that_differ_between_ranks_are_refused_or_come_back(tmp_path: Path) -> None:
    answers = on_ranks(2, our_per_rank, str(tmp_path))
    assert all("cursor (ranks 0 and 1)" in refused for refused, _ in answers)
    assert [value for _, value in answers] == [100, 101]
    assert checkpoints(FileStore(tmp_path), "job") == ["second"]


# -- (e) a damaged object survives --------------------------------------------------------------------------------


def damage(data: bytes, tensor: torch.Tensor) -> dict[str, bytes]:
    """A file whose tensor lost its bytes (a crash before they reached the disk), or one bit of them."""
    start = data.index(tensor.numpy().tobytes())
    hole = data[:start] + bytes(tensor.nbytes) + data[start + tensor.nbytes :]
    return {"hole": hole, "flip": data[: start + 2] + bytes([data[start + 2] ^ 1]) + data[start + 3 :]}


@pytest.mark.stock_defect
@pytest.mark.parametrize("kind", ["hole", "flip"])
def test_stock_loads_damaged_bytes_without_a_word(kind: str, tmp_path: Path) -> None:
    stock_save(weights(1.0), tmp_path)
    [file] = tmp_path.glob("*.distcp")
    file.write_bytes(damage(file.read_bytes(), weights(1.0)["a"])[kind])
    try:
        found = stock_load(weights(0.0), tmp_path)
    except CheckpointException:
        still(False, f"a {kind} in a tensor's bytes is found at load")
    still(not torch.equal(found["a"], weights(1.0)["a"]), f"a {kind} in a tensor's bytes does not reach the tensor")


def test_stock_notices_a_truncated_file_only_where_it_is_cut(tmp_path: Path) -> None:
    """As of torch 2.13 the zip reader refuses a cut tensor; the checkpoint still counts, and the rest of it loads."""
    stock_save({**weights(1.0)}, tmp_path)
    [file] = tmp_path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-100])
    assert "central directory" in str(cause(lambda: stock_load(weights(0.0), tmp_path)))
    assert_same(stock_load({"a": torch.zeros(1000)}, tmp_path), {"a": weights(1.0)["a"]})


@pytest.mark.parametrize("kind", ["hole", "flip", "truncated"])
def test_damaged_bytes_are_refused_by_name(kind: str, store: FileStore) -> None:
    save(weights(1.0), store, "first")
    [chunk] = list(store.list("job/chunks/"))
    data = store.get(chunk.key)
    damaged = data[:-100] if kind == "truncated" else damage(data, weights(1.0)["a"])[kind]
    store.put(chunk.key, damaged)
    error = cause(lambda: load(weights(0.0), store))
    assert isinstance(error, Corrupt)
    assert "does not hold what was written" in str(error)


# -- (f) metadata is pickled --------------------------------------------------------------------------------------


class Crafted:
    """Pickled: code that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


@pytest.mark.stock_defect
def test_stock_runs_the_code_in_a_crafted_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck/.metadata").write_bytes(pickle.dumps(Crafted(tmp_path / "ran")))
    cause(lambda: stock_load(weights(0.0), tmp_path / "ck"))
    still((tmp_path / "ran").exists(), "metadata is no longer unpickled")


@pytest.mark.stock_defect
def test_stock_runs_the_code_in_a_crafted_value(tmp_path: Path) -> None:
    stock_save({"value": Crafted(tmp_path / "ran")}, tmp_path / "ck")
    assert not (tmp_path / "ran").exists()
    stock_load({"value": None}, tmp_path / "ck")
    still((tmp_path / "ran").exists(), "values are no longer unpickled")


@pytest.mark.parametrize("sealed", [False, True])
def test_no_code_of_a_crafted_record_runs(sealed: bool, tmp_path: Path, store: FileStore) -> None:
    crafted = pickle.dumps(Crafted(tmp_path / "ran"))
    store.put(record_key("job", "first"), seal(crafted) if sealed else crafted)
    assert "checksum" in (message := str(cause(lambda: load(weights(0.0), store)))) or "another format" in message
    assert not (tmp_path / "ran").exists()


def test_no_code_of_a_crafted_value_runs(tmp_path: Path) -> None:
    """Not though the writer is hostile: a record and chunks with the right checksums."""
    store = MemoryStore("crafted")
    crafted = io.BytesIO()
    torch.save(Crafted(tmp_path / "ran"), crafted)
    save({"value": 1}, store, "first")
    [old] = [e.key.rsplit("/", 1)[1] for e in store.list("job/chunks/")]
    new = seal(crafted.getvalue())[:64].decode()
    store.put(chunk_key("job", new), crafted.getvalue())
    record = unseal(store.get(record_key("job", "first")), "the record").replace(old.encode(), new.encode())
    bytes_ = str(len(crafted.getvalue())).encode()
    record = record.replace(b'"bytes_":1', b'"bytes_":' + bytes_).replace(b'",0,1,"', b'",0,' + bytes_ + b',"')
    for encoding in (b"plain", b"opaque"):
        store.put(record_key("job", "first"), seal(record.replace(b'"plain"', b'"' + encoding + b'"')))
        message = str(cause(lambda: load({"value": 0}, store)))
        assert "value: stored as pickle" in message or "not a plain value" in message
        assert not (tmp_path / "ran").exists()
