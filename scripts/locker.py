"""Write `constraints.txt`: one version of everything that any extra, group or the build may need.

Resolved for every platform and Python at once. What only a CUDA build of torch needs stays out: torch itself
pins it, and the CPU build must install without. The text names no package index, so that any mirror will do.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from installer import APART, declared, package_sources
from steps import ROOT, InstallError, run
from uv_binary import get_uv

# Chosen by hand: the project's figures were taken with these, and a torchvision fits exactly one torch.
CHOSEN = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31")
PYTHON_OLDEST = "3.11"
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton\b)")
HEADER = "# Made by scripts/lock; used by scripts/install. Edit scripts/locker.py or pyproject.toml instead.\n"


def tidy(compiled: str) -> str:
    """Take out of uv's output the packages of CUDA and local versions such as `+cpu`."""
    lines: list[str] = []
    keep = True
    for line in compiled.splitlines():
        if not line.startswith((" ", "#")):
            keep = not CUDA_ONLY.match(line)
        if keep:
            lines.append(re.sub(r"^(\S+==[\w.]+)\+\w+", r"\1", line))
    return HEADER + "\n".join(lines) + "\n"


def inputs(pyproject: str, chosen: Iterable[str]) -> str:
    """Requirements beyond the project's own: what builds and installs it, and the versions chosen by hand."""
    build: list[str] = tomllib.loads(pyproject)["build-system"]["requires"]
    return "\n".join([*build, "uv", *chosen]) + "\n"


def compile_command(
    uv: str, extras: Iterable[str], groups: Iterable[str], requirements: Path, output: Path
) -> list[str]:
    """The uv call that resolves everything; `fewest` gives one version a package, not one a Python."""
    words = [word for extra in extras for word in ("--extra", extra)]
    words += [word for group in groups for word in ("--group", group)]
    options = ["--universal", "--python-version", PYTHON_OLDEST, "--fork-strategy", "fewest", "--no-header"]
    files = ["pyproject.toml", str(requirements), "--output-file", str(output)]
    return [uv, "pip", "compile", "--quiet", *files, *words, *options]


def lock(options: Sequence[str], constraints: Path) -> None:
    """Resolve and write; pinned versions stay unless uv's options or the requirements move them."""
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    env = package_sources(os.environ, ROOT / ".venv")
    env.pop("UV_FIND_LINKS", None)  # wheels lying about here must not decide what everyone gets
    requirements, output = Path("build/lock-inputs.txt"), Path("build/lock.txt")
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / requirements).write_text(inputs(pyproject, CHOSEN), "utf-8")
    (ROOT / output).write_bytes(constraints.read_bytes())
    uv = get_uv(ROOT / ".venv", env, constraints)
    extras, groups = declared(pyproject)
    words = compile_command(uv, sorted(extras - APART), sorted(groups), requirements, output)
    run([*words, *options], env)
    constraints.write_text(tidy((ROOT / output).read_text("utf-8")), "utf-8")


def main(argv: Sequence[str]) -> int:
    """Entry point; the arguments are options of `uv pip compile`: `--upgrade`, say."""
    try:
        lock(argv, ROOT / "constraints.txt")
    except (InstallError, OSError) as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
