"""What is particular to the file store: paths, killed writers, broken folders, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain.errors import KeyMissing, StoreUnavailable, UserError
from fgtrain.stores import open_store
from fgtrain.stores.file import STALE_S, TEMPORARY, FileStore

ENDLESS_WRITER = """
import itertools, sys
from fgtrain.stores import open_store
store = open_store(sys.argv[1])
for value in itertools.cycle(range(256)):
    store.put("k", bytes([value]) * 3_000_000)
    print("written", flush=True)
"""
REPOSITORY = Path(__file__).parents[2]


def test_objects_are_plain_files(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.put("runs/翠鸟/manifest.json", b"{}")
    assert (tmp_path / "store/runs/翠鸟/manifest.json").read_bytes() == b"{}"
    store.delete("runs/翠鸟/manifest.json")
    assert [p.name for p in (tmp_path / "store").iterdir()] == [TEMPORARY]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("runs", "{cwd}/runs"), ("~/runs", "{home}/runs"), ("/a b/运行#?%20", "/a b/运行#?%20")],
)
def test_bare_path_is_a_folder(written: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    expected = meant.format(cwd=tmp_path, home=tmp_path / "home")
    assert open_store(written).url == open_store(f"file://{expected}").url == f"file://{expected}"


@pytest.mark.parametrize("url", ["file://relative/path", "file://~/runs", "file://", "", "~nobody-has-this-name/x"])
def test_url_that_names_no_folder_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="store"):
        open_store(url)


def test_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="there are file, memory, s3$"):
        open_store("ftp://x/y")
    with pytest.raises(UserError, match="give it a name"):
        open_store("memory://")


def test_temporary_folder_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files being written"):
        FileStore(tmp_path).put(f"{TEMPORARY}/x", b"")


def test_store_that_was_never_written_is_empty(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "not/made")
    assert list(store.list()) == []
    store.delete("k")
    with pytest.raises(KeyMissing):
        store.get("k")
    assert not (tmp_path / "not").exists()


def test_check_sweeps_what_a_killed_writer_left_long_ago(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.check()
    old, new = tmp_path / TEMPORARY / "old", tmp_path / TEMPORARY / "new"
    for file in (old, new):
        file.write_bytes(b"half an obj")
    then = new.stat().st_mtime - STALE_S - 1
    os.utime(old, (then, then))
    store.check()
    assert list((tmp_path / TEMPORARY).iterdir()) == [new]


def test_killed_writer_leaves_a_whole_object(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for _ in range(4):
        command = [sys.executable, "-c", ENDLESS_WRITER, store.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as writer:
            assert writer.stdout is not None
            for _ in range(3):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
        data = store.get("k")
        assert (len(data), len(set(data))) == (3_000_000, 1)
        assert [e.key for e in store.list()] == ["k"]


def test_folder_below_a_file_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(f"{tmp_path}/file/runs")
    with pytest.raises(UserError, match="a file lies where a folder must be .*choose another folder"):
        store.check()
    with pytest.raises(StoreUnavailable):
        store.put("k", b"")


def test_key_that_is_anothers_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("a", b"kept")
    store.put("b/c", b"kept")
    for write in (store.put, store.create):
        for key in ("a/b", "a/b/c"):
            with pytest.raises(StoreUnavailable, match="a file lies where a folder must be"):
                write(key, b"")
    with pytest.raises(StoreUnavailable, match="a folder lies where"):
        store.put("b", b"")
    assert [store.get("a"), store.get("b/c")] == [b"kept", b"kept"]
    assert list((tmp_path / TEMPORARY).iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_the_users_to_mend(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission to write"):
        FileStore(tmp_path / "runs").check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount: {mount.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk_says_so_and_keeps_what_was_there(small_disk: Path) -> None:
    store = FileStore(small_disk)
    store.put("k", b"old")
    for write in (store.put, store.create):
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            write("k", bytes(2 << 20))
    assert store.get("k") == b"old"
    assert list((small_disk / TEMPORARY).iterdir()) == []
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(UserError, match="the disk is full.*; free some space"):
        store.check()
    assert [e.key for e in store.list()] == ["filler", "k"]
