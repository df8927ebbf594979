"""Public data sets that `fglaunch data get` fetches, and the way from a URL into a folder."""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fgtrain.errors import UserError
from launcher.download import Report, Wanted, download, drop, require_space, sha256

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set as published: one gzipped tar with everything of use in one `folder`.

    `unpacked` is an upper estimate in bytes. `proof` names files in `folder` that a complete copy has. `urls`
    are tried in order; all serve the same bytes.
    """

    title: str
    archive: Wanted
    urls: tuple[str, ...]
    folder: str
    proof: tuple[str, ...]
    unpacked: int


DATASETS = MappingProxyType(
    {
        # Source: size and SHA-256 as in pystiche and FastAI.jl; it is the archive whose MD5,
        # 97eceeb196236b17998738112f37df78, most other loaders check.
        "cub200": Dataset(
            title="CUB-200-2011: 200 species of birds, 11,788 pictures",
            archive=Wanted(
                name="CUB_200_2011.tgz",
                size=1_150_585_339,
                sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            ),
            urls=(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
            ),
            folder="CUB_200_2011",
            proof=("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
            unpacked=1_500_000_000,
        ),
    }
)


def get(name: str, into: Path, mirror: str | None, report: Report) -> Path:
    """Fetch a known data set into a folder below `into` and return that folder; at once if it is there.

    `mirror` replaces the official addresses: the URL of the archive, or of the folder it is in (`file:` too).
    Interrupted at any point, the next call goes on. `report` is told (bytes done, bytes in all).

    Raises:
        UserError: unknown name, no room, no URL that serves the right bytes, a folder in the way.
    """
    if name not in DATASETS:
        raise UserError(f"there is no data set called {name!r}; there are {', '.join(sorted(DATASETS))}")
    dataset = DATASETS[name]
    urls = (mirror_url(mirror, dataset.archive.name),) if mirror else dataset.urls
    return fetch(dataset, into, urls, report)


def mirror_url(mirror: str, archive: str) -> str:
    """Return the archive's URL at a mirror that was given as that URL or as its folder's."""
    return mirror if mirror.endswith(archive) else f"{mirror.rstrip('/')}/{archive}"


def fetch(
    dataset: Dataset,
    into: Path,
    urls: Sequence[str],
    report: Report,
    wait: Callable[[float], object] = time.sleep,
) -> Path:
    """Do what `get` does for any data set; `wait` is called with the seconds between tries.

    Raises:
        UserError: as `get`.
    """
    if _is_complete(dataset, into):
        return into / dataset.folder
    _make(into)
    with _alone(into / f".{dataset.archive.name}.lock"):
        if not _is_complete(dataset, into):  # else another process was faster
            _fetch(dataset, into, urls, report, wait)
    return into / dataset.folder


def _fetch(dataset: Dataset, into: Path, urls: Sequence[str], report: Report, wait: Callable[[float], object]) -> None:
    """Download and unpack. An archive that the user brought is used, and left where it is."""
    brought, part = into / dataset.archive.name, into / f"{dataset.archive.name}.part"
    if brought.exists():
        if sha256(brought) != dataset.archive.sha256:
            raise UserError(f"{brought}: is not the published archive (its SHA-256 differs); move it away")
        require_space(into, dataset.unpacked, dataset.folder)
        _unpack(dataset, brought, into)
        return
    here = part.stat().st_size if part.exists() else 0
    require_space(into, dataset.archive.size - here + dataset.unpacked, dataset.folder)
    download(dataset.archive, urls, part, report, wait)
    _unpack(dataset, part, into)
    drop(part)


def _make(into: Path) -> None:
    """Make the folder."""
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{into}: cannot be made: {error.strerror}; choose another folder with `--into DIR`") from error


def _is_complete(dataset: Dataset, into: Path) -> bool:
    """Tell whether the data set is there. It gets its name last, so there is no half of ours."""
    folder = into / dataset.folder
    if not folder.exists():
        return False
    lacking = [name for name in dataset.proof if not (folder / name).exists()]
    if lacking:
        raise UserError(f"{folder}: is there but lacks {', '.join(lacking)}; move it out of the way")
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep two calls from writing the same files. The lock goes with the process, so none is left behind."""
    try:
        file = lock.open("w")
    except OSError as error:
        raise UserError(f"{lock.parent}: cannot be written: {error.strerror}; choose another folder") from error
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{lock.parent}: another `fglaunch data get` is at work there") from error
        yield


def _unpack(dataset: Dataset, archive: Path, into: Path) -> None:
    """Unpack aside, then give the folder its name in one step."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError("unpacking safely needs Python 3.11.4 or later; install a newer Python")
    aside = into / f".{dataset.folder}.unpacking"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(aside, members=_below(tar, dataset.folder), filter="data")
        if not (aside / dataset.folder).is_dir():
            raise UserError(f"{archive}: holds no {dataset.folder}/ folder; it is not the archive of {dataset.title}")
        (aside / dataset.folder).rename(into / dataset.folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}") from error
    except OSError as error:
        raise UserError(f"{aside}: cannot be written: {error.strerror}; make room and call again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _below(tar: tarfile.TarFile, folder: str) -> Iterator[tarfile.TarInfo]:
    """Choose the members of the data set's folder: archives have strays beside it."""
    return (member for member in tar if member.name == folder or member.name.startswith(f"{folder}/"))
