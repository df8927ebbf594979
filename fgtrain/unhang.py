"""Have a node's ranks write their stacks into their logs, and kill those that hang.

    python -m fgtrain.unhang FOLDER [--kill SLOT]...

Signals go to processes that the node's pulse file names, and only while they are the ones that wrote it.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from fgtrain.pulse import FILE, alive, decode

_WRITING_S = 0.5  # for the stacks to be written, where the process can


def main() -> None:
    """Do it; processes that are gone are passed over."""
    parser = argparse.ArgumentParser(prog="fgtrain.unhang")
    parser.add_argument("folder", type=Path, help="the node's working folder")
    parser.add_argument("--kill", type=int, action="append", default=[], metavar="SLOT", help="a local rank to kill")
    args = parser.parse_args()
    beats = [b for b in decode((args.folder / FILE).read_bytes()) if alive(b)]
    for beat in beats:
        print(f"rank {beat.rank}, process {beat.pid}: stacks asked for", flush=True)
        os.kill(beat.pid, signal.SIGUSR2)
    time.sleep(_WRITING_S)
    for beat in beats:
        if beat.slot in args.kill and alive(beat):
            print(f"rank {beat.rank}, process {beat.pid}: killed", flush=True)
            os.kill(beat.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
