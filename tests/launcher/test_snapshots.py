"""The commands on snapshots, through the real command line, on one finished run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.runs import Runs

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--set", "epochs=0.4", "--set", "loader.workers=0", "--set", "snapshots.steps=3"),
    *("--set", "snapshots.seconds=null", "--set", "snapshots.memory_steps=0"),  # else the arena may be full, for once
    *("--set", "ema.decay=0.9", "--set", 'model.freeze=["layer*","conv1*"]'),
)
STEPS = [3, 6, 9]
TRAINING_S = 280.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A store with one finished run, `base`; tests that change it work on a copy."""
    runs = Runs(tmp_path_factory.mktemp("snapshots"))
    done = runs.call(*RECIPE, "--name", "base", timeout_s=TRAINING_S)
    assert done.returncode == 0, done.stderr
    return runs


@pytest.fixture
def copy(finished: Runs, tmp_path: Path) -> Runs:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    return Runs(tmp_path)


def rows(runs: Runs, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = runs.json("snapshots", *args)
    return found


def bytes_in(runs: Runs) -> int:
    return sum(f.stat().st_size for f in (runs.folder / "store" / "chunks").rglob("*") if f.is_file())


def chunk_file(runs: Runs, step: int, group: str) -> Path:
    """Return the file of a group's last chunk."""
    store = RunStore(open_store(runs.store), "base")
    name = next(n for n in store.manifest_names() if n.startswith(f"{step:010d}"))
    digest = store.manifest(name).groups[group].chunks[-1]
    return runs.folder / "store" / "chunks" / digest[:2] / digest


def one_line(done: Any, code: int = 2) -> str:
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("no GPU")]
    assert len(lines) == 1, done.stderr
    return str(lines[0])


# -- looking ------------------------------------------------------------------------------------------------------


def test_listing_says_what_was_looked_at(finished: Runs) -> None:
    found = rows(finished, "base")
    assert [r["step"] for r in found] == STEPS
    assert all(r["verified"] and r["check"] == "sizes" and not r["abandoned"] for r in found)
    assert {"weights", "bytes_new", "bytes_shared", "time", "tier", "attempt", "world"} <= found[0].keys()
    assert found[1]["bytes_shared"] > found[1]["bytes_new"]  # the backbone is frozen
    table = finished.call("snapshots", "base")
    assert table.returncode == 0
    assert "sizes ok" in table.stdout


def test_run_called_like_an_action_can_be_listed(copy: Runs) -> None:
    shutil.copytree(copy.folder / "store/runs/base", copy.folder / "store/runs/verify")
    assert [r["step"] for r in rows(copy, "list", "verify")] == STEPS
    assert [r["step"] for r in rows(copy, "verify", "verify")] == STEPS


def test_flipped_bit_is_found_by_verify_and_missing_chunk_by_the_listing(copy: Runs) -> None:
    file = chunk_file(copy, 6, "model")
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    assert all(r["verified"] for r in rows(copy, "base"))
    done = copy.call("snapshots", "verify", "base", "--json")
    assert done.returncode == 1
    assert [r["step"] for r in json.loads(done.stdout) if not r["verified"]] == [6]
    assert "damaged: steps [6]" in done.stderr
    assert copy.call("snapshots", "verify", "base@9").returncode == 0
    file.unlink()
    assert [r["step"] for r in rows(copy, "base") if not r["verified"]] == [6]


def test_diff_names_what_differs(finished: Runs) -> None:
    same = finished.call("snapshots", "diff", "base", "base@9")
    assert same.returncode == 0
    assert "tensors: the same" in same.stdout
    other = finished.call("snapshots", "diff", "base@3", "base@9", "--json")
    assert other.returncode == 1
    found = json.loads(other.stdout)
    assert 0 < len(found["differ"]) < found["tensors"]
    assert not any("layer" in d["name"] for d in found["differ"])
    assert all(d["max_abs"] > 0 for d in found["differ"])
    assert found["bytes_shared"] > found["bytes_a"] / 2
    assert found["recipe"] == []
    assert found["b"]["metrics"]["val_top1"] >= 0
    assert "model/fc.weight: values, max |a - b| = " in finished.call("snapshots", "diff", "base@3", "base").stdout


def test_exported_weights_are_those_of_the_end_of_the_run(finished: Runs, tmp_path: Path) -> None:
    done = finished.call("snapshots", "export", "base", "--to", str(tmp_path / "w.safetensors"))
    assert done.returncode == 0, done.stderr
    assert "moving average of the weights of base after step 9" in done.stderr
    published = load_file(finished.folder / "store/runs/base/weights.safetensors")
    exported = load_file(tmp_path / "w.safetensors")
    assert exported.keys() == published.keys()
    assert all(exported[n].equal(published[n]) and exported[n].dtype == published[n].dtype for n in published)
    assert finished.call("snapshots", "export", "base", "--raw", "--to", str(tmp_path / "raw")).returncode == 0
    raw = load_file(tmp_path / "raw")
    assert not raw["fc.weight"].equal(published["fc.weight"])


# -- pruning ------------------------------------------------------------------------------------------------------


def test_prune_frees_what_it_foretold_and_keeps_what_loads(copy: Runs) -> None:
    before = bytes_in(copy)
    args = ("snapshots", "prune", "base", "--keep", "1", "--grace", "0")
    dry = copy.json(*args, "--dry-run")
    assert bytes_in(copy) == before
    assert [s["step"] for s in dry["removed"]] == [3, 6]
    done = copy.json(*args)
    assert done == dry
    assert before - bytes_in(copy) == dry["collected"]["deleted"]["bytes_"] > 0
    assert [r["step"] for r in rows(copy, "verify", "base")] == [9]
    assert copy.samples("base")


def test_prune_within_the_grace_period_leaves_chunks_alone(copy: Runs) -> None:
    before = bytes_in(copy)
    done = copy.call("snapshots", "prune", "base", "--every", "6")
    assert done.returncode == 0, done.stderr
    assert "the first at or past a multiple of 6 steps" in done.stdout
    assert "younger than 6 h: left alone" in done.stdout
    assert [r["step"] for r in rows(copy, "base")] == [6, 9]
    assert bytes_in(copy) == before
    for file in (copy.folder / "store/chunks").rglob("*"):
        os.utime(file, (0, 0))
    assert "set aside; a prune 6 h from now" in copy.call("snapshots", "prune", "base", "--every", "6").stdout
    assert bytes_in(copy) < before
    assert all(r["verified"] for r in rows(copy, "verify", "base"))


def test_unreadable_manifest_of_any_run_stops_the_collection(copy: Runs) -> None:
    other = copy.folder / "store/runs/other/manifests"
    other.mkdir(parents=True)
    (other / "0000000001-00001").write_bytes(b"written by a version to come")
    before = bytes_in(copy)
    done = copy.call("snapshots", "prune", "base", "--keep", "1", "--grace", "0")
    assert "no chunk was collected: runs/other/manifests/0000000001-00001 cannot be read" in one_line(done, 1)
    assert bytes_in(copy) == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("prune", "base"), "say what to keep: --keep N, --every K or both"),
        (("prune", "base", "--keep", "0"), "--keep 0: it must be 1 or more"),
        (("prune", "base", "--keep", "1", "--grace", "-1"), "--grace -1.0: it must be 0 or more"),
        (("prune", "bas", "--keep", "1"), "no run called 'bas'"),
        (("export", "base@4", "--to", "/tmp/w"), "no snapshot of step 4; the nearest are of steps 3, 6, 9"),
        (("export", "base", "--to", "/no/such/folder/w"), "there is no folder /no/such/folder"),
        (("diff", "base@x", "base"), "'base@x': write RUN, RUN@STEP"),
        (("verify", "base@7"), "no snapshot of step 7"),
    ],
)
def test_mistakes_are_one_line(finished: Runs, args: tuple[str, ...], says: str) -> None:
    assert says in one_line(finished.call("snapshots", *args))


# -- going back, and beginning from another run -------------------------------------------------------------------


def test_run_goes_back_to_an_older_snapshot(copy: Runs) -> None:
    assert "the nearest are of steps 3, 6, 9" in one_line(copy.call("resume", "base", "--from", "5"))
    done = copy.call("resume", "base", "--from", "3", timeout_s=TRAINING_S)
    assert done.returncode == 0, done.stderr
    assert "base goes on from step 3; 2 newer snapshots are set aside" in done.stderr
    assert "from step 3 of 9" in done.stderr
    found = rows(copy, "base")
    assert [(r["step"], r["attempt"], r["abandoned"]) for r in found] == [
        *((3, 1, False), (6, 3, False), (9, 3, False)),
        *((6, 1, True), (9, 1, True)),
    ]
    assert all(r["verified"] for r in found)
    copy.json("snapshots", "prune", "base", "--keep", "9")
    assert [r["step"] for r in rows(copy, "base")] == STEPS


def test_new_run_begins_with_weights_of_another_by_reference(copy: Runs) -> None:
    done = copy.call(*RECIPE, "--name", "child", "--init-from", "base@6", timeout_s=TRAINING_S)
    assert done.returncode == 0, done.stderr
    assert "from the start of 9" in done.stderr
    first = rows(copy, "child")[0]
    frozen = RunStore(open_store(copy.store), "base").manifest("0000000006-00001").groups["frozen"]
    assert first["bytes_shared"] >= frozen.bytes_  # not uploaded again
    layers = json.loads(copy.call("snapshots", "diff", "base@6", "child@3", "--json").stdout)
    assert layers["bytes_shared"] >= frozen.bytes_
    pruned = copy.json("snapshots", "prune", "base", "--keep", "1", "--grace", "0")
    assert pruned["kept"]["0000000006-00001"] == "child began with it"
    assert [s["step"] for s in pruned["removed"]] == [3]
    assert all(r["verified"] for r in rows(copy, "verify", "child"))


def test_tensors_that_differ_are_named(copy: Runs) -> None:
    assert "--init-skip: it says what --init-from leaves out" in one_line(copy.call(*RECIPE, "--init-skip", "fc.*"))
    assert "no run called gone" in one_line(copy.call(*RECIPE, "--init-from", "gone"))
    other = ("--set", "model.name=test_efficientnet", "--set", "model.freeze=[]")
    done = copy.call(*RECIPE, *other, "--name", "vit", "--init-from", "base", timeout_s=TRAINING_S)
    assert done.returncode == 2, done.stderr
    assert "--init-from: tensors differ: " in done.stderr
    assert "absent here" in done.stderr or "absent there" in done.stderr
