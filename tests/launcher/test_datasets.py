"""From a URL to an unpacked data set."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from fgtrain.data.cub200 import Cub200
from fgtrain.errors import UserError
from launcher.datasets import DATASETS, Dataset, fetch, get, mirror_url
from launcher.download import Wanted
from tests.launcher.archive_server import Archive, Fault, serve
from tests.picture_files import encoded, gradient

ROOT = Path(__file__).parents[2]
TEXTS = {
    "images.txt": "1 001.Gull/a.jpg\n2 001.Gull/b.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n",
    "train_test_split.txt": "1 1\n2 0\n",
    "classes.txt": "1 001.Gull\n",
}


def tgz(files: dict[str, bytes], edit: Callable[[tarfile.TarInfo], None] = lambda _: None) -> bytes:
    """Pack files."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            edit(info)
            tar.addfile(info, BytesIO(data))
    return out.getvalue()


def described(content: bytes, **changes: object) -> Dataset:
    """Describe an archive as the table does."""
    fields = {
        "title": "Birds",
        "archive": Wanted(name="birds.tgz", size=len(content), sha256=hashlib.sha256(content).hexdigest()),
        "urls": (),
        "folder": "CUB_200_2011",
        "proof": (*TEXTS, "images"),
        "unpacked": 100_000,
    }
    return Dataset(**(fields | changes))  # type: ignore[arg-type]


BIRDS = tgz(
    {"attributes.txt": b"a stray beside the folder, as in the real archive"}
    | {f"CUB_200_2011/{name}": text.encode() for name, text in TEXTS.items()}
    | {f"CUB_200_2011/images/001.Gull/{n}.jpg": encoded(gradient(), "JPEG") for n in "ab"}
)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.download._TIMEOUT_S", 240.0)  # how often was asked is counted here


def quiet(*_: float) -> None:
    """Report to nobody, wait for nothing."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_downloaded_unpacked_and_usable(tmp_path: Path) -> None:
    into = tmp_path / "数据" / "birds"
    progress: list[tuple[int, int]] = []
    with serve(Archive(BIRDS, faults=[Fault(cut_after=500)])) as archive:
        folder = fetch(described(BIRDS), into, [archive.url], lambda *p: progress.append(p), quiet)
    assert folder == into / "CUB_200_2011"
    assert names(into) == [".birds.tgz.lock", "CUB_200_2011"]
    assert progress[-1] == (len(BIRDS), len(BIRDS))
    data = Cub200(root=str(into))
    assert data.read(data.index().train[0]).shape == (24, 32, 3)


def test_the_second_call_asks_nobody(tmp_path: Path) -> None:
    with serve(Archive(BIRDS)) as archive:
        first = fetch(described(BIRDS), tmp_path, [archive.url], quiet)
    assert fetch(described(BIRDS), tmp_path, [archive.url], quiet) == first
    assert len(archive.asked) == 1


def test_what_a_killed_call_left_is_used_and_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".CUB_200_2011.unpacking/CUB_200_2011/half").mkdir(parents=True)
    (tmp_path / "birds.tgz.part").write_bytes(BIRDS)
    with serve(Archive(BIRDS)) as archive:
        folder = fetch(described(BIRDS), tmp_path, [archive.url], quiet)
    assert archive.asked == []
    assert not (folder / "half").exists()
    assert names(tmp_path) == [".birds.tgz.lock", "CUB_200_2011"]


def test_a_call_killed_half_way_is_gone_on_with(tmp_path: Path) -> None:
    big = tgz({"CUB_200_2011/images/a.jpg": random.Random(0).randbytes(4_000_000)})
    dataset = described(big, proof=("images",))
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from launcher import download; from launcher.datasets import *\n"
        "download._TIMEOUT_S = 240.0\n"
        "size, sha256, into, url = int(sys.argv[1]), *sys.argv[2:]\n"
        "wanted = Wanted(name='birds.tgz', size=size, sha256=sha256)\n"
        "birds = Dataset(title='', archive=wanted, urls=(), folder='CUB_200_2011', "
        "proof=('images',), unpacked=1)\n"
        "kill = lambda done, total: done < total // 2 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "fetch(birds, Path(into), [url], kill)\n"
    )
    with serve(Archive(big)) as archive:
        arguments = [str(len(big)), dataset.archive.sha256, str(tmp_path), archive.url]
        killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=240)
        assert killed.returncode == -signal.SIGKILL
        have = (tmp_path / "birds.tgz.part").stat().st_size
        assert len(big) // 2 <= have < len(big)
        folder = fetch(dataset, tmp_path, [archive.url], quiet)
    assert archive.starts() == ["", f"bytes={have}-"]
    assert (folder / "images/a.jpg").stat().st_size == 4_000_000


def test_an_archive_that_the_user_brought_is_used_and_kept(tmp_path: Path) -> None:
    (tmp_path / "birds.tgz").write_bytes(BIRDS)
    fetch(described(BIRDS), tmp_path, [], quiet)
    assert names(tmp_path) == [".birds.tgz.lock", "CUB_200_2011", "birds.tgz"]


def test_a_wrong_archive_that_the_user_brought_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "birds.tgz").write_bytes(b"not it")
    with pytest.raises(UserError, match=r"birds\.tgz: is not the published archive .*move it away"):
        fetch(described(BIRDS), tmp_path, [], quiet)
    assert (tmp_path / "birds.tgz").read_bytes() == b"not it"


def test_a_folder_that_is_not_complete_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "CUB_200_2011").mkdir()
    (tmp_path / "CUB_200_2011/images.txt").write_text("")
    with pytest.raises(UserError, match=r"lacks image_class_labels\.txt, .*move it out of the way"):
        fetch(described(BIRDS), tmp_path, [], quiet)
    assert names(tmp_path / "CUB_200_2011") == ["images.txt"]


def escape_by_name(info: tarfile.TarInfo) -> None:
    info.name = "CUB_200_2011/../../escaped"


def escape_by_link(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc", 0


def device(info: tarfile.TarInfo) -> None:
    info.type, info.size = tarfile.CHRTYPE, 0


@pytest.mark.parametrize("edit", (escape_by_name, escape_by_link, device))
def test_an_unsafe_archive_is_refused_whole(tmp_path: Path, edit: Callable[[tarfile.TarInfo], None]) -> None:
    unsafe = tgz({"CUB_200_2011/images.txt": b"x"}, edit)
    into = tmp_path / "a" / "b"
    with serve(Archive(unsafe)) as archive, pytest.raises(UserError, match="cannot be unpacked"):
        fetch(described(unsafe), into, [archive.url], quiet)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]
    assert not any(name.startswith((".CUB", "CUB")) for name in names(into))


@pytest.mark.parametrize("content", (b"no archive at all", BIRDS[: len(BIRDS) // 2]))
def test_an_archive_that_cannot_be_read_leaves_no_folder(tmp_path: Path, content: bytes) -> None:
    with serve(Archive(content)) as archive, pytest.raises(UserError, match="cannot be unpacked"):
        fetch(described(content), tmp_path, [archive.url], quiet)
    assert not (tmp_path / "CUB_200_2011").exists()


def test_an_archive_without_the_folder_is_refused(tmp_path: Path) -> None:
    content = tgz({"elsewhere/images.txt": b"x"})
    with serve(Archive(content)) as archive, pytest.raises(UserError, match=r"holds no CUB_200_2011/"):
        fetch(described(content), tmp_path, [archive.url], quiet)


def test_too_small_a_disk_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    with serve(Archive(BIRDS)) as archive, pytest.raises(UserError, match="GB are free"):
        fetch(described(BIRDS, unpacked=10**18), tmp_path, [archive.url], quiet)
    assert archive.asked == []


def test_a_second_call_at_the_same_time_is_turned_away(tmp_path: Path) -> None:
    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another `fglaunch data get` is at work"):
            fetch(described(BIRDS), tmp_path, [], quiet)

    with serve(Archive(BIRDS)) as archive:
        assert fetch(described(BIRDS), tmp_path, [archive.url], meanwhile).is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        fetch(described(BIRDS), tmp_path / "file" / "below", [], quiet)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".birds.tgz.lock").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory; choose another folder"):
        fetch(described(BIRDS), tmp_path, [], quiet)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set called 'cub'; there are cub200"):
        get("cub", tmp_path, None, quiet)


def test_get_asks_the_mirror_for_the_archive_by_name_and_refuses_wrong_bytes(tmp_path: Path) -> None:
    with (
        serve(Archive(BIRDS)) as archive,
        pytest.raises(UserError, match=r"CUB_200_2011\.tgz serves another file"),
    ):
        get("cub200", tmp_path, archive.url.removesuffix("birds.tgz"), quiet)
    assert len(archive.asked) == 1


def test_a_complete_folder_is_enough_for_get(tmp_path: Path) -> None:
    for name in DATASETS["cub200"].proof:
        (tmp_path / "CUB_200_2011" / name).mkdir(parents=True)
    assert get("cub200", tmp_path, None, quiet) == tmp_path / "CUB_200_2011"


@pytest.mark.parametrize("mirror", ("https://m/x", "https://m/x/", "https://m/x/a.tgz"))
def test_a_mirror_is_a_folder_or_the_file(mirror: str) -> None:
    assert mirror_url(mirror, "a.tgz") == "https://m/x/a.tgz"


@pytest.mark.parametrize("name", DATASETS)
def test_entries_of_the_table_are_complete(name: str) -> None:
    dataset = DATASETS[name]
    assert len(bytes.fromhex(dataset.archive.sha256)) == 32
    assert dataset.archive.size > 0
    assert dataset.unpacked > 0
    assert dataset.proof
    assert all(mirror_url(url, dataset.archive.name) == url for url in dataset.urls)
