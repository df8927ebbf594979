"""`dcp.save`, `dcp.async_save` and `dcp.load` of one process on a store."""

from __future__ import annotations

import io
import pickle
import threading
import uuid
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE
from torch.distributed.checkpoint.planner import ReadItem, WriteItem

from fgtrain.dcp import StoreReader, StoreWriter, checkpoints
from fgtrain.dcp import blocks as cutting
from fgtrain.errors import KeyExists, KeyMissing, UserError
from fgtrain.stores import Abilities, Store, open_store
from fgtrain.stores.memory import MemoryStore
from tests.testbed.checkpoints import assert_same, blank, cause, load, save
from tests.testbed.faulty_store import Fault, FaultyStore, first_of
from tests.testbed.s3 import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(request.node.name)


class Counting(FaultyStore):
    """Counts what is written, and the bytes that are read."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, lambda number, operation: None)
        self.written: list[str] = []
        self.read: list[tuple[str, int]] = []

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.written.append(key)
        super().put(key, data)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        data = super().get(key, start, end)
        self.read.append((key, len(data)))
        return data


def training_state() -> dict[str, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.95))
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def odd_state() -> dict[str, Any]:
    return {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": torch.arange(12.0).reshape(3, 4).bfloat16().t(),
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "flags": torch.tensor([True, False]),
        "list": [torch.ones(2), {"lr": 0.1}],
        "best": (0.5, float("inf"), None),
        "rng": (torch.get_rng_state(), 2**100, b"\x00\xff"),
        "names": OrderedDict(),
        "classes": ["白头翁", "Çizgili"],
    }


@pytest.mark.parametrize("make", [training_state, odd_state, dict])
def test_state_comes_back_as_it_was(make: Any, store: MemoryStore) -> None:
    state = make()
    save(state, store, "first")
    assert_same(load(blank(state), store, "first"), state)


def test_a_stateful_object_is_saved_and_restored(store: MemoryStore) -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save({"model": model}, store, "first")
    load({"model": other}, store)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


def test_without_a_name_the_newest_is_loaded(store: MemoryStore) -> None:
    for step in (9, 10, 100):
        save({"step": step}, store, f"step-{step}")
    assert checkpoints(store, "job") == ["step-9", "step-10", "step-100"]
    assert load({"step": 0}, store) == {"step": 100}
    assert load({"step": 0}, store, "step-9") == {"step": 9}


def test_a_checkpoint_is_never_replaced(store: MemoryStore) -> None:
    save({"step": 1}, store, "first")
    before = dict(store._objects)
    assert isinstance(cause(lambda: save({"step": 2}, store, "first")), KeyExists)
    assert dict(store._objects) == before


def test_of_two_writers_of_one_name_the_second_fails(store: MemoryStore) -> None:
    class Rival(StoreWriter):
        def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
            save({"step": 1}, store, "first")  # commits after this writer saw that the name is free
            return plans

    assert isinstance(cause(lambda: dcp.save({"step": 2}, storage_writer=Rival(store, "job", "first"))), KeyExists)
    assert load({"step": 0}, store) == {"step": 1}


def test_a_commit_whose_response_was_lost_counts(store: MemoryStore) -> None:
    save({"step": 1}, FaultyStore(store, first_of("create", Fault.LOST)), "first")
    assert load({"step": 0}, store) == {"step": 1}


def test_what_did_not_change_is_not_uploaded_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PACK_BELOW", 1024)
    counting = Counting(store)
    state = {"frozen": torch.ones(1000), "head": torch.zeros(1000), "step": 1}
    save(state, counting, "first")
    counting.written.clear()
    save({**state, "head": torch.full((1000,), 2.0)}, counting, "second")
    assert len(counting.written) == 1
    assert_same(load(blank(state), store, "first"), state)


def test_a_damaged_chunk_is_not_shared(store: MemoryStore) -> None:
    save({"a": torch.ones(9)}, store, "first")
    [chunk] = [e.key for e in store.list("job/chunks/")]
    store.put(chunk, store.get(chunk)[:-1])
    save({"a": torch.ones(9)}, store, "second")
    assert_same(load({"a": torch.zeros(9)}, store), {"a": torch.ones(9)})
    store.delete(chunk)
    save({"a": torch.ones(9)}, store, "third")
    assert_same(load({"a": torch.zeros(9)}, store), {"a": torch.ones(9)})


def test_a_load_reads_only_what_it_needs(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PACK_BELOW", 1 << 10)
    monkeypatch.setattr(cutting, "CHUNK_BYTES", 1 << 12)
    state = {"big": torch.arange(8192.0), "other": torch.ones(8192), "one": 1, "two": 2}
    save(state, store, "first")
    counting = Counting(store)
    assert_same(load({"big": torch.zeros(8192), "one": 0}, counting), {"big": state["big"], "one": 1})
    chunks = [bytes_ for key, bytes_ in counting.read if "/chunks/" in key]
    assert sum(chunks) == state["big"].nbytes + 1
    assert len(chunks) == 8 + 1


def test_neighbours_in_a_chunk_are_read_at_once(store: MemoryStore) -> None:
    state = {f"p{n}": torch.full((10,), float(n)) for n in range(100)}
    save(state, store, "first")
    counting = Counting(store)
    assert_same(load(blank(state), counting), state)
    assert len([key for key, _ in counting.read if "/chunks/" in key]) == 1


def test_chunks_larger_than_one_request_come_back(store: MemoryStore) -> None:
    state = {"big": torch.randn(5 << 20), "small": torch.ones(3)}  # 20 MiB: three chunks
    save(state, store, "first")
    assert len(list(store.list("job/chunks/"))) == 4
    assert_same(load(blank(state), store), state)


def test_a_checkpoint_on_an_s3_server_comes_back(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweedfs.env.items():
        monkeypatch.setenv(name, value)
    s3 = open_store(f"s3://{seaweedfs.bucket}/{uuid.uuid4()}")
    state = {**training_state(), "big": torch.randn(5 << 20)}
    save(state, s3, "first")
    assert isinstance(cause(lambda: save(state, s3, "first")), KeyExists)
    assert_same(load(blank(state), s3), state)
    rows = load({"model": blank(state["model"])}, s3, "first")
    assert_same(rows["model"], state["model"])


# -- values that are not plain ------------------------------------------------------------------------------------


def test_a_value_that_is_not_plain_is_refused_by_name(store: MemoryStore) -> None:
    error = cause(lambda: save({"model": {"tags": {1, 2}}}, store, "first"))
    assert isinstance(error, UserError)
    assert "model.tags: it is builtins.set" in str(error)
    assert checkpoints(store, "job") == []


def test_pickled_values_need_the_word_of_both_sides(store: MemoryStore) -> None:
    save({"tags": {1, 2}, "step": 3}, store, "first", trust_pickle=True)
    assert "tags: stored as pickle" in str(cause(lambda: load({"tags": set()}, store)))
    assert load({"tags": set()}, store, trust_pickle=True) == {"tags": {1, 2}}
    assert load({"step": 0}, store) == {"step": 3}  # plain ones are never pickled


class OwnSavePlanner(DefaultSavePlanner):
    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return io.BytesIO(b"own " + repr(object).encode())


class OwnLoadPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = value.read()


def test_a_planner_with_its_own_encoding_gets_its_bytes_back(store: MemoryStore) -> None:
    error = cause(lambda: save({"a": 1}, store, "first", planner=OwnSavePlanner()))
    assert "in its own way" in str(error)
    save({"a": 1}, store, "first", planner=OwnSavePlanner(), trust_pickle=True)
    assert load({"a": 0}, store, planner=OwnLoadPlanner(), trust_pickle=True) == {"a": b"own 1"}


@pytest.mark.parametrize("planned", [{"flatten_state_dict": False}, {"enable_plan_caching": True}])
def test_options_of_the_stock_planner_work(planned: dict[str, bool], store: MemoryStore) -> None:
    for step in (1, 2):
        state = {"w": torch.full((3,), float(step)), "step": step}
        save(state, store, f"step-{step}", planner=DefaultSavePlanner(**planned))
    assert_same(load(blank(state), store), state)
    assert load({"step": 0}, store, "step-1") == {"step": 1}


# -- async_save ---------------------------------------------------------------------------------------------------


def test_async_save_commits_what_was_there_when_it_was_called(store: MemoryStore) -> None:
    state = {"w": torch.ones(4), "step": 1}
    future = dcp.async_save(state, checkpoint_id="first", storage_writer=StoreWriter(store, "job"))
    state["w"] += 1
    future.result()
    assert_same(load(blank(state), store), {"w": torch.ones(4), "step": 1})


def test_one_writer_may_have_two_saves_in_flight(store: MemoryStore) -> None:
    meet = threading.Barrier(2)

    class Meeting(DefaultSavePlanner):
        def finish_plan(self, new_plan: Any) -> Any:
            meet.wait(240)
            return super().finish_plan(new_plan)

    writer = StoreWriter(store, "job")
    futures = [
        dcp.async_save({"w": torch.full((3,), n)}, checkpoint_id=f"s{n}", storage_writer=writer, planner=Meeting())
        for n in (1, 2)
    ]
    for future in futures:
        future.result()
    for n in (1, 2):
        assert_same(load({"w": torch.zeros(3, dtype=torch.int64)}, store, f"s{n}"), {"w": torch.full((3,), n)})


def test_a_writer_travels_to_another_process_by_its_url(tmp_path: Path) -> None:
    writer = StoreWriter(str(tmp_path), "job", from_rank_zero=["bn.*"], trust_pickle=True, threads=2)
    writer.reset("step-5")
    again = pickle.loads(pickle.dumps(writer))
    assert again.store.url == writer.store.url
    assert (again.prefix, again.checkpoint_id) == ("job", "step-5")
    assert (again.from_rank_zero, again.trust_pickle, again.threads) == (("bn.*",), True, 2)


# -- what cannot be done ------------------------------------------------------------------------------------------


class Unconditional(MemoryStore):
    def check(self) -> Abilities:
        return Abilities(conditional_create=False)


def test_a_store_that_ignores_conditions_is_said_once(store: MemoryStore) -> None:
    writer = StoreWriter(Unconditional("unconditional"), "job")
    with pytest.warns(UserWarning, match="ignores conditional writes"):
        dcp.save({"a": 1}, checkpoint_id="a", storage_writer=writer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*conditional writes")
        dcp.save({"a": 1}, checkpoint_id="b", storage_writer=writer)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\n"])
def test_names_that_cannot_be_keys_are_refused(name: str, store: MemoryStore) -> None:
    with pytest.raises(UserError, match="a name of one part"):
        StoreWriter(store, "job", name)
    with pytest.raises(UserError, match="a name of one part"):
        StoreReader(store, "job", name)
    assert not StoreWriter.validate_checkpoint_id(name)


@pytest.mark.parametrize("prefix", ["", "/", "../x", "runs/mine", "/chunks"])
def test_prefixes_that_cannot_be_are_refused(prefix: str, store: MemoryStore) -> None:
    with pytest.raises(UserError, match="prefix"):
        StoreWriter(store, prefix)


def test_a_save_without_a_name_is_refused(store: MemoryStore) -> None:
    assert "name it" in str(cause(lambda: dcp.save({"a": 1}, storage_writer=StoreWriter(store, "job"))))


def test_ranks_that_do_not_agree_on_one_checkpoint_are_refused(store: MemoryStore) -> None:
    with pytest.raises(UserError, match="use_collectives=False"):
        dcp.save({"a": 1}, storage_writer=StoreWriter(store, "job", "first"), use_collectives=False)


def test_loading_nothing_says_so(store: MemoryStore) -> None:
    assert "has no checkpoint below job" in str(cause(lambda: load({"a": 0}, store)))
    save({"a": 1}, store, "first")
    assert "job/checkpoints/second" in str(cause(lambda: load({"a": 0}, store, "second")))
    with pytest.raises(KeyMissing):
        StoreReader(store, "job", "second").read_metadata()


def test_ranks_that_found_different_checkpoints_are_told(store: MemoryStore) -> None:
    reader = StoreReader(store, "job")
    plans = []
    for step in (1, 2):
        save({"step": step}, store, f"step-{step}")
        reader.read_metadata()
        plans.append(reader.prepare_local_plan(dcp.LoadPlan([])))
    assert reader.prepare_global_plan(plans[:1]) == plans[:1]
    with pytest.raises(UserError, match="different checkpoints"):
        reader.prepare_global_plan(plans)


def test_a_shape_that_changed_is_refused(store: MemoryStore) -> None:
    save({"w": torch.ones(3)}, store, "first")
    assert "Size mismatch" in str(cause(lambda: load({"w": torch.ones(4)}, store)))


def test_a_sparse_tensor_is_refused_by_name(store: MemoryStore) -> None:
    state: STATE_DICT_TYPE = {"emb": torch.eye(3).to_sparse()}
    assert "emb" in str(cause(lambda: save(state, store, "first")))
