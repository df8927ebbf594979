"""A disk that is soon full: a tmpfs of a given size. Mounting needs root; without, tests skip."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, bytes_: int) -> None:
        """Give it another size."""
        _mount("-o", f"remount,size={bytes_}", str(self.folder))

    def lock(self) -> bool:
        """Have it refuse all writing from now on; False while a file is open for writing."""
        try:
            _mount("-o", "remount,ro", str(self.folder))
        except subprocess.CalledProcessError:
            return False
        return True

    def fill(self) -> None:
        """Use up what is left."""
        with (self.folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass


@contextlib.contextmanager
def small_disk(folder: Path, bytes_: int) -> Iterator[SmallDisk]:
    """Mount one on a folder, which is made."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("mounting a small disk needs Linux and root")
    folder.mkdir(parents=True)
    try:
        _mount("-t", "tmpfs", "-o", f"size={bytes_}", "tmpfs", str(folder))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no small disk can be mounted here: {error.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: what still has a file open there must not keep it in place.
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=240)


def _mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True, capture_output=True, text=True, timeout=240)
