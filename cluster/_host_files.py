"""On a node: copies of the code, and environments. Standard library, and Python 3.8 will do: sent over SSH.

    <cache>/code/<digest>/           a copy of a project, named by its contents, never changed
    <cache>/code/<digest>.json       what is in it: path -> [sha256, mode]
    <cache>/envs/<key>/              a virtual environment, named by what was asked of it; .complete is written last
    <cache>/envs/<key>.lock, .log    who makes it now, and what the installer said

A run's folder has links to the ones that it uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
_OLDEST = (3, 11)
_WHAT_FAILED = 300  # characters of the installer's last words


class HostError(Exception):
    """What cannot be done on this node; one line, meant for the user."""


# -- code ---------------------------------------------------------------------------------------------------------


def missing(cache: str, digest: str, files: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the contents (sha256) that a copy of the code needs and this node has not; none if the copy is there."""
    code = Path(cache) / "code"
    if _touched(code / f"{digest}.json"):
        return []
    here = _contents(code)
    return sorted({sha for sha, mode in files.values() if mode != "l" and sha not in here})


def assemble(cache: str, digest: str, files: Mapping[str, Sequence[str]], order: Sequence[str], body: bytes) -> None:
    """Make a copy of the code from earlier copies and what was sent.

    Args:
        cache: the cache folder.
        digest: the name of the copy.
        files: path -> (sha256, mode), mode "x" for a program; of a link ("l"), what it points to instead of the sha256.
        order: sha256 of the contents in `body`.
        body: zlib of JSON sizes, a line feed, and the contents one after the other.
    """
    code = Path(cache) / "code"
    if (code / f"{digest}.json").exists():
        return
    part = code / f".{digest}-{uuid.uuid4().hex}"
    try:
        sent, here = _unpack(order, body), _contents(code)
        for path, (sha, mode) in files.items():
            target = part / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode == "l":
                target.symlink_to(sha)
                continue
            target.write_bytes(_checked(sha, sent.get(sha), here))
            target.chmod(0o755 if mode == "x" else 0o644)
        part.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another launcher was quicker: the contents are the same
            part.rename(code / digest)
        _write(code / f"{digest}.json", json.dumps(files))
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _contents(code: Path) -> dict[str, Path]:
    """Return where the contents of all copies lie, by sha256."""
    found = {}
    for listing in sorted(code.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            for path, (sha, mode) in json.loads(listing.read_text()).items():
                if mode != "l":
                    found[sha] = code / listing.stem / path
    return found


def _unpack(order: Sequence[str], body: bytes) -> dict[str, bytes]:
    if not order:
        return {}
    head, _, rest = zlib.decompress(body).partition(b"\n")
    found, at = {}, 0
    for number, size in enumerate(json.loads(head)):
        found[order[number]] = rest[at : at + size]
        at += size
    return found


def _checked(sha: str, sent: bytes | None, here: Mapping[str, Path]) -> bytes:
    """Return contents whose checksum was looked at: someone may have edited an earlier copy."""
    try:
        data = here[sha].read_bytes() if sent is None else sent
    except (KeyError, FileNotFoundError):
        raise HostError("an old copy of the code was removed just now: try again") from None
    if hashlib.sha256(data).hexdigest() != sha:
        raise HostError(f"{here.get(sha, 'what was sent')} is not what it was: remove its folder and try again")
    return data


def link(folder: str, name: str, target: str) -> None:
    """Let a run's folder have a link of a name, in place of an earlier one, at once."""
    part = Path(folder) / f".{name}-{uuid.uuid4().hex}"
    part.symlink_to(target)
    part.replace(Path(folder) / name)


def keep(folder: str, name: str) -> bool:
    """Let a run's folder have the link of a name that it has, as if it were new; False if it leads to nothing."""
    place = Path(folder) / name
    if not place.is_dir():
        return False
    os.utime(str(place), follow_symlinks=False)  # what it leads to is not old
    return True


def linked(folder: str, names: Sequence[str]) -> list[str]:
    """Return by links of which of these names, in a run's folder, it has which version of something: NAME=VERSION."""
    places = (Path(folder) / name for name in names)
    return [f"{place.name}={Path(os.readlink(str(place))).name}" for place in places if place.is_symlink()]  # noqa: PTH115


# -- environments -------------------------------------------------------------------------------------------------


def make_environment(
    cache: str, key: str, requirements: str, constraints: str, options: Sequence[str], env: Mapping[str, str]
) -> float:
    """Make an environment, unless it is there; of several callers one makes it and the others wait.

    Args:
        cache: the cache folder.
        key: names everything that decides what the environment holds.
        requirements: a requirements file's text.
        constraints: a constraints file's text.
        options: for `uv pip install` or `pip install`.
        env: added to this node's environment.

    Returns:
        How long it took, in seconds; 0 if it was there.

    Raises:
        HostError: it cannot be made.
    """
    place = Path(cache) / "envs" / key
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(f"{key}.lock")):
        if _touched(place / ".complete"):
            return 0.0
        begun = time.monotonic()
        shutil.rmtree(place, ignore_errors=True)
        files = []
        for name, text in (("requirements", requirements), ("constraints", constraints)):
            files.append(place.with_name(f"{key}.{name}.txt"))
            files[-1].write_text(text)
        for argv in environment_commands(str(place), files, options, _uv(), base_python()):
            _run(argv, env, place.with_name(f"{key}.log"))
        (place / ".complete").touch()
        return time.monotonic() - begun


def environment_commands(
    place: str, files: Sequence[Path], options: Sequence[str], uv: str | None, python: str | None
) -> list[list[str]]:
    """Return what makes an environment: uv where it is to be had, else venv and pip. Pure.

    Raises:
        HostError: neither uv nor a Python that is new enough is here.
    """
    requirements, constraints = map(str, files)
    what = ["-r", requirements, "-c", constraints, *options]
    if uv:
        base = python or ".".join(map(str, _OLDEST))  # uv fetches one where there is none
        install = [uv, "pip", "install", "--python", f"{place}/bin/python", *what]
        return [[uv, "venv", "--quiet", "--python", base, place], install]
    if python is None:
        raise HostError("no Python 3.11 or newer and no uv: install one of them, or set python in clusters.toml")
    return [[python, "-m", "venv", place], [f"{place}/bin/python", "-m", "pip", "install", "--quiet", *what]]


def base_python() -> str | None:
    """Return a Python here that is new enough."""
    for name in _PYTHONS:
        path = shutil.which(name)
        if path and _version(path) >= _OLDEST:
            return path
    return None


def _version(python: str) -> tuple[int, ...]:
    script = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", script], stdout=subprocess.PIPE, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()


def _uv() -> str | None:
    home = Path.home()
    places = [str(home / ".local/bin"), str(home / ".cargo/bin")]
    return shutil.which("uv", path=os.pathsep.join([os.environ.get("PATH", ""), *places]))


def _run(argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
    full = dict(os.environ)
    full.update(env)
    with log.open("ab") as out:
        code = subprocess.call(argv, env=full, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    if code:
        said = " ".join(log.read_text(errors="replace").split())[-_WHAT_FAILED:]
        raise HostError(f"{Path(argv[0]).name} {argv[1]} failed ({log}): ... {said}")


def _touched(file: Path) -> bool:
    """Tell whether a file is there, and note that it was asked for: what is used is not old."""
    try:
        os.utime(str(file))
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    part.write_text(text)
    part.replace(file)


def python_version(python: str) -> str:
    """Return the version of an interpreter here.

    Raises:
        HostError: it does not run.
    """
    if python == sys.executable:
        return ".".join(map(str, sys.version_info[:3]))
    try:
        argv = [python, "-c", "import platform; print(platform.python_version())"]
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{python} does not run: {error}") from error
    if done.returncode:
        raise HostError(f"{python} does not run: {done.stderr.decode(errors='replace').strip()[-_WHAT_FAILED:]}")
    return done.stdout.decode().strip()
