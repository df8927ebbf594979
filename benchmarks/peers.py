"""The peers' own environment: what they need beside exactly our versions of everything we share with them.

It lies in `.venv-peers` beside the project, outside the project's dependencies, and is made at the first use.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # how packages are found is the installer's knowledge

import installer  # noqa: E402
from steps import run  # noqa: E402
from uv_binary import get_uv  # noqa: E402

PEERS = ("accelerate==1.15.0", "lightning==2.6.6")


def pins(installed: Iterable[tuple[str, str]]) -> str:
    """Return a constraints file that holds shared packages at the (name, version) pairs of this environment.

    The local part of a version (`+cpu`) is left out: it names a build, which the package index's settings choose.
    """
    lines = {f"{name}=={version.partition('+')[0]}" for name, version in installed if name.lower() != "fglaunch"}
    return "\n".join(sorted(lines)) + "\n"


def python(venv: Path = ROOT / ".venv-peers", env: Mapping[str, str] = os.environ) -> Path:
    """Return the Python of the peers' environment; installs it unless it is there in the right versions.

    Raises:
        InstallError: it cannot be installed.
    """
    ours = pins((d.metadata["Name"], d.version) for d in metadata.distributions())
    wanted = hashlib.sha256(f"{PEERS}{ours}".encode()).hexdigest()
    stamp, interpreter = venv / "peers.sha256", venv / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(venv, interpreter, ours, env)
        stamp.write_text(wanted)
    return interpreter


def versions(interpreter: Path) -> str:
    """Name the peers and their versions, as installed."""
    names = [re.split("[=<>]", peer)[0] for peer in PEERS]
    code = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {names}))"
    return subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _install(venv: Path, interpreter: Path, ours: str, env: Mapping[str, str]) -> None:
    uv_env = installer.package_sources(env, venv)
    uv = get_uv(ROOT / ".venv", uv_env, ROOT / "constraints.txt")  # not into what it is about to make anew
    run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)], uv_env)
    constraints = venv / "pins.txt"
    constraints.write_text(ours, "utf-8")
    gpu = installer.has_nvidia_gpu(env)
    backend = installer.torch_backend(uv_env, gpu, platform.system())
    backend = installer.reachable_backend(uv, backend, uv_env, str(interpreter))
    options = ["--constraints", str(constraints), *([f"--torch-backend={backend}"] if backend else [])]
    project = ["-r", "pyproject.toml", "--extra", "train"]
    run([uv, "pip", "install", "--quiet", "--python", str(interpreter), *options, *project, *PEERS], uv_env)
