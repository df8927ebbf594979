"""Run the steps of an installation and tell the user about them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class InstallError(Exception):
    """What the user can do something about; shown as one line."""


def say(line: str) -> None:
    """Tell the user one thing."""
    print(f"install: {line}", flush=True)


def output_of(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What a command prints; empty where it fails or does not exist."""
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def succeeds(command: Sequence[str], env: Mapping[str, str], stdin: str = "") -> bool:
    """Whether a command ends with 0; what it prints is dropped."""
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, input=stdin, text=True, cwd=ROOT)
    except OSError:
        return False
    return done.returncode == 0


def run(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a step whose own messages the user should see."""
    if code := subprocess.run(command, env=dict(env), cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        raise InstallError(f"{Path(command[0]).name} {command[1]} failed with exit code {code} (see above)")
