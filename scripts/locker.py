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

from installer import package_sources
from steps import ROOT, InstallError, output_of
from uv_binary import get_uv

# Chosen by hand: the project's figures were taken with these, and a torchvision fits exactly one torch.
CHOSEN = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31")
PYTHON_OLDEST = "3.11"
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton\b)")
HEADER = (
    "# Made by scripts/lock; used by scripts/install. Edit scripts/locker.py or pyproject.toml instead.\n"
)


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


def compile_command(uv: str, groups: Iterable[str], requirements: Path) -> list[str]:
    """The uv call that resolves everything; `fewest` gives one version a package, not one a Python."""
    words = [word for group in groups for word in ("--group", group)]
    options = ["--universal", "--python-version", PYTHON_OLDEST, "--fork-strategy", "fewest", "--no-header"]
    return [
        uv,
        "pip",
        "compile",
        "--quiet",
        "pyproject.toml",
        str(requirements),
        "--all-extras",
        *words,
        *options,
    ]


def main(argv: Sequence[str]) -> int:
    """Entry point; options are passed on to `uv pip compile` (`--upgrade-package NAME`, say)."""
    os.chdir(ROOT)
    pyproject = Path("pyproject.toml").read_text("utf-8")
    env = package_sources(os.environ, ROOT / ".venv")
    env.pop("UV_FIND_LINKS", None)  # wheels lying about here must not decide what everyone gets
    requirements = ROOT / "build" / "lock-inputs.txt"
    requirements.parent.mkdir(exist_ok=True)
    requirements.write_text(inputs(pyproject, CHOSEN), "utf-8")
    uv = get_uv(ROOT / ".venv", env, ROOT / "constraints.txt")
    groups = sorted(tomllib.loads(pyproject)["dependency-groups"])
    compiled = output_of([*compile_command(uv, groups, requirements), *argv], env)
    if not compiled:
        raise InstallError("uv could not resolve the requirements; see `uv pip compile`")
    Path("constraints.txt").write_text(tidy(compiled), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
