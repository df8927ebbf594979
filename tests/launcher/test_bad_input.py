"""Every mistake of the user: exit code 2, one line that names it and its mending, and nothing started or written."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from fgtrain.plan import World
from fgtrain.stores import open_store
from launcher import prepare
from launcher.cli import main
from tests.picture_files import write_picture
from tests.testbed.runs import ROOT, Runs, wait_for
from tests.testbed.s3 import S3Server

QUICK = "recipes/quickstart.py"
RECIPE = (ROOT / QUICK).read_text(encoding="utf-8")
FOLDER = """
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Recipe
RECIPE = Recipe(
    model=Timm(name="test_resnet", classes=2), data=ImageFolder(root={root!r}, resize=32, crop=28), optim=SGD(lr=0.1),
    batch=Batch(total=4, micro=2), epochs=1,
)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path, PYTHONDONTWRITEBYTECODE="1")


def written(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() if f.is_file() else b"" for f in folder.rglob("*")}


def started(folder: Path) -> list[str]:
    """Processes that know of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def here(runs: Runs, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: quicker, and the same where no import matters."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        for name in ("FGLAUNCH_STORE", "FGLAUNCH_WORK"):
            patch.setenv(name, runs.env[name])
        try:
            code = main(args)
        except SystemExit as ended:  # argparse
            assert isinstance(ended.code, int)
            code = ended.code
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def refused(runs: Runs, args: Sequence[str], parts: Sequence[str], *, quick: bool = False) -> None:
    before = written(runs.folder)
    done = here(runs, args) if quick else runs.call(*args)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in lines[0]
    assert written(runs.folder) == before
    assert not started(runs.folder)


def test_missing_recipe_names_those_that_are_there(runs: Runs) -> None:
    refused(
        runs, ["recipes/quikstart.py"], ["recipes/quikstart.py: no such recipe file", "recipes has", "quickstart.py"]
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("RECIPE = (", ["r.py:1:", "never closed"]),
        ("\n\nraise RuntimeError('two\\nlines')", ["r.py:3: RuntimeError: two lines"]),
        ("import torch", ["r.py:1: a recipe may not import torch at module level", "fgtrain import it on the nodes"]),
        ("\nimport numpy as np", ["r.py:2: a recipe may not import numpy"]),
        ("from torch import nn", ["r.py:1: a recipe may not import torch"]),
        ("import neighbour", ["r.py:1: a recipe may not import numpy"]),
        ("import importlib\nimportlib.import_module('torch.nn')", ["r.py:2: a recipe may not import torch"]),
        ("import nowhere", ["r.py:1: ModuleNotFoundError: No module named 'nowhere'"]),
        ("x = 1", ["r.py: no Recipe called RECIPE"]),
        (RECIPE.replace("RECIPE =", "OTHER ="), ["no Recipe called RECIPE; it has", "r.py:OTHER"]),
        (RECIPE.replace("epochs=20", "epochs='x'"), ["r.py: epochs: expected float, got str"]),
        (RECIPE.replace("Digits()", "Digits(crop=2.5)"), ["r.py: data.crop: expected int, got float"]),
        (RECIPE.replace("Digits()", "object()"), ["r.py: data: a object cannot be part of a recipe"]),
        (RECIPE.replace("Digits()", "3"), ["r.py: data: cannot read a Data from 3"]),
        (RECIPE.replace("epochs=20", "epoch=20"), ["r.py:", "TypeError", "epoch"]),
        (RECIPE.replace("lr=3e-3", "lr=float('nan')"), ["r.py: optim.lr=nan: it must be a finite number"]),
        ("import sys; sys.exit(0)", ["r.py:1: SystemExit"]),
    ],
)
def test_broken_recipe_is_named_with_its_line(runs: Runs, text: str, parts: list[str]) -> None:
    (runs.folder / "r.py").write_text(text, encoding="utf-8")
    (runs.folder / "neighbour.py").write_text("import numpy", encoding="utf-8")
    refused(runs, [str(runs.folder / "r.py")], parts)


def test_recipe_that_is_a_folder_or_not_text_is_refused(runs: Runs) -> None:
    (runs.folder / "r.py").write_bytes(b"\xff\xfe")
    refused(runs, [str(runs.folder / "r.py")], ["r.py: cannot be read", "utf-8"])
    refused(runs, [str(runs.folder)], ["cannot be read", "Is a directory"])


def test_file_is_named_in_a_complaint_about_a_set(runs: Runs) -> None:
    refused(runs, [QUICK, "--set", "optim.lrr=1"], [f"{QUICK}: --set optim.lrr", "did you mean 'optim.lr'?"])


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--set", "seed=x"], ["--set seed=x", "seed is int"]),
        (["--set", "precision=fp8"], ["precision is one of auto, fp32, bf16, fp16"]),
        (["--set", "optim.betas=0.9"], ["optim.betas", "length 2, got 1"]),
        (["--set", 'data={"kind":"digits","crop":"x"}'], ["data.crop: expected int"]),
        (["--set", "optim.lr=nan"], ["optim.lr=nan: it must be a finite number"]),
        (["--set", "epochs=inf"], ["epochs=inf: it must be a finite number"]),
        (["--set", "epochs=0"], ["epochs=0.0: it must be above 0"]),
        (["--set", "batch.total=0"], ["batch.total=0: it must be above 0"]),
        (["--set", "batch.total=50"], ["batch.total=50 is not a whole number", "--set batch.total=48"]),
        (["--set", "epochs=1", "--set", "epochs=-1"], ["epochs=-1.0: it must be above 0"]),
        (["--set", "model.classes=9"], ["model.classes=9", "the data has 10 classes", "--set model.classes=10"]),
        (["--set", "model.weights=nowhere.pth"], ["model.weights=nowhere.pth: there is no such file"]),
        (["--nodes", "5"], ["5 processes cannot share", "--set batch.micro=8"]),
        (["--gpus", "0"], ["--nodes 1 --gpus 0: both must be 1 or more"]),
        (["--nodes", "-1"], ["--nodes -1 --gpus 1: both must be 1 or more"]),
        (["--gpus", "two"], ["argument --gpus: invalid int value: 'two'"]),
        (["--nod", "1", "--bogus"], ["unrecognized arguments: --bogus"]),
        (["--store", "ftp://x/y"], ["store ftp://x/y: unknown scheme 'ftp'", "file", "s3"]),
        (["--name", ""], ["--name ''", "letters, digits"]),
        (["--name", "../x"], ["--name '../x'"]),
        (["--name", "a b"], ["--name 'a b'"]),
        (["--port", "0"], ["--port 0: ports go from 1 to 65535"]),
        (["--port", "70000"], ["--port 70000"]),
    ],
)
def test_wrong_value_is_named_with_what_is_right(runs: Runs, args: list[str], parts: list[str]) -> None:
    refused(runs, [QUICK, *args], parts, quick=True)


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    two = Runs(tmp_path, CUDA_VISIBLE_DEVICES="0,1")
    refused(two, [QUICK, "--gpus", "4"], ["--nodes 1 --gpus 4 needs 4 GPUs, this machine has 2"])
    refused(two, [QUICK, "--nodes", "3"], ["--nodes 3 --gpus 1 needs 3 GPUs, this machine has 2"])


def test_port_in_use_is_refused(runs: Runs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused(runs, [QUICK, "--port", port], [f"--port {port}: something listens there", "leave --port out"])


@pytest.mark.train
def test_unknown_model_is_found_before_anything_starts(runs: Runs) -> None:
    refused(runs, [QUICK, "--set", "model.name=resnett50"], ["model.name=resnett50", "no such model", "resnet50"])


@pytest.mark.train
def test_model_that_does_not_take_the_pictures_is_found_before_anything_starts(runs: Runs) -> None:
    parts = [f"{QUICK}: data.crop=28: vit_tiny_patch16_224 does not take such pictures", "--set data.crop=224"]
    refused(runs, [QUICK, "--set", "model.name=vit_tiny_patch16_224"], parts, quick=True)


def folders(runs: Runs, train: Sequence[str] = ("鸟", "b c"), val: Sequence[str] = ("鸟", "b c")) -> str:
    """A recipe of pictures in class folders; its path."""
    root = runs.folder / "data"
    for split, classes in (("train", train), ("val", val)):
        for class_ in classes:
            for i in range(3):
                write_picture(root / split / class_ / f"{i}.jpg")
    recipe = runs.folder / "folders.py"
    recipe.write_text(FOLDER.format(root=str(root)), encoding="utf-8")
    return str(recipe)


def test_missing_data_folder_is_named(runs: Runs) -> None:
    recipe = folders(runs)
    refused(runs, [recipe, "--set", "data.root=nowhere"], ["data.root=nowhere: there is no such folder"])


def test_class_folders_that_differ_are_named(runs: Runs) -> None:
    refused(runs, [folders(runs, val=("鸟", "d"))], ["the class folders differ", "val/ lacks b c", "train/ lacks d"])


def test_truncated_picture_is_named_and_may_be_skipped(runs: Runs) -> None:
    recipe = folders(runs)
    broken = runs.folder / "data" / "train" / "鸟" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-20])
    parts = ["1 of 12 pictures cannot be used", "train/鸟/1.jpg", "--set data.on_bad_image=skip"]
    refused(runs, [recipe], parts)
    done = runs.call(recipe, "--set", "data.on_bad_image=skip", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 bad pictures are skipped, train/鸟/1.jpg" in done.stderr
    assert "passed over" not in done.stderr
    assert "data       5 training samples" in done.stdout


def test_files_that_are_not_taken_for_pictures_are_told_of(runs: Runs) -> None:
    recipe = folders(runs)
    for name in ("train/鸟/1.heic", "train/鸟/2.heic"):
        (runs.folder / "data" / name).write_bytes(b"x")
    done = runs.call(recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "are passed over: 2, train/鸟/1.heic first" in done.stderr


def test_store_below_a_file_is_refused(runs: Runs) -> None:
    (runs.folder / "file").write_text("x")
    store = f"{runs.folder}/file/store"
    refused(runs, [QUICK, "--store", store], [f"store file://{store}", "a file lies where a folder must be", "choose"])


def test_work_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    runs = Runs(tmp_path, store=f"memory://{tmp_path.name}", FGLAUNCH_WORK=str(tmp_path / "file" / "work"))
    refused(runs, [QUICK], ["cannot make the working folder", "set FGLAUNCH_WORK"])


def test_wrong_secret_of_s3_is_told(tmp_path: Path, seaweedfs: S3Server) -> None:
    wrong = dict(seaweedfs.env) | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    runs = Runs(tmp_path, f"s3://{seaweedfs.bucket}/bad-input", **wrong)
    refused(runs, [QUICK], [f"store s3://{seaweedfs.bucket}/bad-input", "set AWS_SECRET_ACCESS_KEY"])
    unknown = Runs(tmp_path, runs.store, **dict(seaweedfs.env) | {"AWS_ACCESS_KEY_ID": "nobody"})
    refused(unknown, [QUICK], ["set AWS_ACCESS_KEY_ID"])
    refused(unknown, [QUICK, "--dry-run"], [f"store s3://{seaweedfs.bucket}/bad-input"])
    assert not seaweedfs.client().list_objects_v2(Bucket=seaweedfs.bucket, Prefix="bad-input").get("Contents")


@pytest.mark.parametrize("command", ["resume", "logs", "attach", "stop", "snapshots", "samples"])
@pytest.mark.parametrize("name", ["nope", "", "../x", "a b"])
def test_unknown_run_is_told(runs: Runs, command: str, name: str) -> None:
    parts = [f"no run called {name!r}", f"`fglaunch ps --store {runs.store}` lists them"]
    refused(runs, [command, name], parts, quick=True)


@pytest.fixture
def begun(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was begun and never ran: its recipe's path. It is called `begun`."""
    recipe = runs.folder / "mine.py"
    recipe.write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    run, _ = prepare.prepare(str(recipe), ["seed=7"], World(1, 1), "begun")
    prepare.register(run, open_store(runs.store))
    return str(recipe)


def test_taken_name_is_refused(runs: Runs, begun: str) -> None:
    parts = ["--name begun", "has a run of this name", "`fglaunch resume begun"]
    refused(runs, [begun, "--name", "begun"], parts)
    refused(runs, [begun, "--name", "begun", "--dry-run"], parts)


def test_resume_with_a_changed_recipe_says_what_differs(runs: Runs, begun: str) -> None:
    changed = RECIPE.replace("lr=3e-3", "lr=0.5").replace("Digits()", "Digits(flip=True)")
    Path(begun).write_text(changed, encoding="utf-8")
    parts = ["mine.py has changed", "optim.lr: 0.003, now 0.5", "data.flip: False, now True", "--as-recorded"]
    refused(runs, ["resume", "begun"], parts)
    Path(begun).write_text(RECIPE.replace("AdamW", "Adam"), encoding="utf-8")
    refused(runs, ["resume", "begun"], ["optim kind: AdamW, now Adam"])
    Path(begun).write_text("import torch", encoding="utf-8")
    refused(runs, ["resume", "begun"], ["may not import torch", "--as-recorded"])


def test_resume_on_a_world_that_cannot_share_is_refused(runs: Runs, begun: str) -> None:
    refused(runs, ["resume", "begun", "--nodes", "0"], ["--nodes 0 --gpus 1: both must be 1 or more"])
    refused(runs, ["resume", "begun", "--nodes", "9"], ["9 processes cannot share"])


def test_resume_with_other_data_is_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = folders(runs)
    run, _ = prepare.prepare(recipe, [], World(1, 1), "other")
    prepare.register(run, open_store(runs.store))
    write_picture(runs.folder / "data" / "train" / "鸟" / "new.jpg")
    refused(runs, ["resume", "other"], ["the data of other is not what it was"])
    (runs.folder / "data").rename(runs.folder / "gone")
    refused(runs, ["resume", "other"], ["there is no such folder"])


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["shwo", QUICK], ["no command 'shwo'", "did you mean 'show'?"]),
        (["run"], ["the following arguments are required: RECIPE"]),
        (["logs"], ["the following arguments are required: RUN"]),
        (["completion", "fish"], ["invalid choice: 'fish'"]),
        (["ps", "--store", "ftp://x"], ["unknown scheme 'ftp'"]),
        (["show", QUICK, "--set", "x=1"], ["Recipe has no field 'x'"]),
        (["data", "get", "nothing", "--into", "/proc/none"], ["no data set called 'nothing'"]),
    ],
)
def test_wrong_command_line_is_one_line(runs: Runs, args: list[str], parts: list[str]) -> None:
    refused(runs, args, parts, quick=True)


def test_run_that_waits_for_nothing_leaves_no_process(runs: Runs) -> None:
    """The helper above can see processes at all."""
    with subprocess.Popen(["sleep", "600"], env=runs.env) as sleeper:
        try:
            wait_for(lambda: started(runs.folder), "the process is seen", 240)
        finally:
            sleeper.kill()
