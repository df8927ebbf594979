"""What of a project's folder is sent to hosts: the files that git tracks or does not ignore, by content."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster import ClusterError

LIMIT_BYTES = 100 << 20
_DATA = ("store", "data")  # what lies here belongs to runs, unless git tracks it
_SKIPPED = ("__pycache__", "node_modules", "venv")


class Tree(NamedTuple):
    """Files to send: path -> (sha256, "x" for a program, "-" otherwise), or (where to, "l") for a link."""

    root: Path
    files: dict[str, tuple[str, str]]
    digest: str


def take_tree(root: Path, names: Iterable[str], limit_bytes: int = LIMIT_BYTES) -> Tree:
    """Read the files of a folder.

    Raises:
        ClusterError: one cannot be read, or together they are more than code can be.
    """
    files, sizes = {}, {}
    for name in sorted(names):
        path = root / name
        try:
            if path.is_symlink():
                files[name] = (str(path.readlink()), "l")
            elif path.is_file():
                sizes[name] = path.stat().st_size
                if sum(sizes.values()) <= limit_bytes:
                    sha = hashlib.sha256(path.read_bytes()).hexdigest()
                    files[name] = (sha, "x" if os.access(path, os.X_OK) else "-")
        except OSError as error:
            raise ClusterError(f"cannot read {path} to send it: {error.strerror}") from error
    if sum(sizes.values()) > limit_bytes:
        raise ClusterError(too_much(root, sizes, limit_bytes))
    return Tree(root, files, tree_digest(files))


def tree_digest(files: Mapping[str, Sequence[str]]) -> str:
    """Return the name of a tree with these files. Pure."""
    text = json.dumps(sorted((name, *what) for name, what in files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def too_much(root: Path, sizes: Mapping[str, int], limit_bytes: int) -> str:
    """Say that a folder is too large to be sent, and what of it is. Pure."""
    tops: dict[str, int] = {}
    for name, size in sizes.items():
        top = name.split("/")[0]
        tops[top] = tops.get(top, 0) + size
    most = max(tops, key=lambda top: tops[top])
    return (
        f"{root} has {sum(sizes.values()) >> 20} MiB to send to the hosts, {tops[most] >> 20} MiB of it in {most}"
        f" (limit {limit_bytes >> 20} MiB): name in .gitignore what is not code"
    )


def project_files(root: Path) -> list[str]:
    """Return the paths of a project's code, relative to its folder: what git tracks or does not ignore.

    Without git: all but hidden folders, environments, and `store` and `data` at the top.
    """
    found = _git_files(root)
    return _walk(root, _DATA) if found is None else found


def _git_files(root: Path) -> list[str] | None:
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    argv += [word for name in _DATA for word in ("-x", f"/{name}/")]
    try:
        done = subprocess.run(argv, capture_output=True, check=False)
    except OSError:
        return None
    if done.returncode != 0:
        return None
    found = []
    for name in filter(None, os.fsdecode(done.stdout).split("\0")):
        inner = root / name
        if inner.is_dir() and not inner.is_symlink():  # a submodule, or a repository within this one
            found += [f"{name.rstrip('/')}/{n}" for n in (_git_files(inner) or ())]
        else:
            found.append(name)
    return sorted(set(found))


def _walk(root: Path, data: Sequence[str] = ()) -> list[str]:
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        skipped = (*_SKIPPED, *(data if here == Path() else ()))
        folders[:] = [f for f in folders if f not in skipped and not f.startswith(".")]
        found += [str(here / name) for name in names]
    return sorted(found)


def package_files(root: Path, package: str) -> list[str]:
    """Return the paths of an installed package's files, relative to the folder it lies in."""
    return [f"{package}/{name}" for name in _walk(root / package) if "__pycache__" not in name]


def pack(tree: Tree, wanted: Sequence[str]) -> bytes:
    """Return the contents of these sha256, as `cluster._host_files.assemble` takes them.

    Raises:
        ClusterError: a file has changed since the tree was taken.
    """
    paths = {sha: tree.root / name for name, (sha, mode) in tree.files.items() if mode != "l"}
    contents = []
    for sha in wanted:
        data = paths[sha].read_bytes()
        if hashlib.sha256(data).hexdigest() != sha:
            raise ClusterError(f"{paths[sha]} changed while it was being sent: start again")
        contents.append(data)
    sizes = json.dumps([len(c) for c in contents]).encode()
    return zlib.compress(b"\n".join([sizes, b"".join(contents)]), 1)
