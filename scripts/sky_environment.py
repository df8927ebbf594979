"""Install SkyPilot into an environment of its own, from where pip's settings say packages come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from installer import package_sources
from steps import ROOT, InstallError, run, say, succeeds
from uv_binary import get_uv

VERSION = "0.14"  # as in cluster._sky_task: SkyPilot changes its interface between minor versions
OLDEST, NEWEST = (3, 9), (3, 13)  # Pythons that it runs on
FOLDER = Path.home() / ".fglaunch" / "sky"
CLOUDS = ("aws", "slurm")


def requirement(clouds: Sequence[str]) -> str:
    """Return what is asked of the installer."""
    return f"skypilot[{','.join(sorted(set(clouds)))}]=={VERSION}.*"


def install(folder: Path, clouds: Sequence[str]) -> None:
    """Make `folder` an environment with SkyPilot; free where it has it already.

    Raises:
        InstallError: a step failed.
    """
    python = folder / "bin" / "python"
    env = package_sources(os.environ, ROOT / ".venv")
    uv = get_uv(ROOT / ".venv", env, ROOT / "constraints.txt")
    if not succeeds([str(python), "-c", "pass"], env):
        base = sys.executable if OLDEST <= sys.version_info[:2] <= NEWEST else "3.11"
        # --seed: SkyPilot calls pip to pack itself for a cluster's machines.
        run([uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", base, str(folder)], env)
    run([uv, "pip", "install", "--quiet", "--python", str(python), requirement(clouds)], env)


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    folder = Path(argv[0]).expanduser().absolute() if argv else FOLDER
    try:
        install(folder, argv[1:] or CLOUDS)
    except (InstallError, OSError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    say(f"SkyPilot is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
