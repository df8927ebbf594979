"""How long `fglaunch --help` takes, against a Python that does nothing: `python -m benchmarks.startup`.

Both are started turn by turn, so that a busy machine slows both alike; the figure is the median of the ratios of
neighbours.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.spread import Spread, median_interval, ratios, spread
from benchmarks.table import conditions, render

BAR = 3.0  # times `python -c pass`


def commands() -> dict[str, list[str]]:
    """Return what is timed, by name; the first is the limit.

    Raises:
        FileNotFoundError: fglaunch is not installed beside this interpreter.
    """
    program = shutil.which("fglaunch", path=str(Path(sys.executable).parent))
    if program is None:
        raise FileNotFoundError("fglaunch is not installed beside this interpreter: pip install -e .")
    return {"python -c pass": [sys.executable, "-c", "pass"], "fglaunch --help": [program, "--help"]}


def seconds(argv: Sequence[str]) -> float:
    """Return the wall time of a command from start to end, in seconds."""
    begun = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(argvs: Sequence[Sequence[str]], runs: int) -> list[list[float]]:
    """Time each command `runs` times in turns, after a first run that only fills caches."""
    for argv in argvs:
        seconds(argv)
    rounds = [[seconds(argv) for argv in argvs] for _ in range(runs)]
    return [list(times) for times in zip(*rounds, strict=True)]


def row(name: str, times: Sequence[float], limit: Sequence[float]) -> list[str]:
    """Return a command's line of the table: milliseconds, and the ratio to the limit with its quartiles."""
    took, ratio = spread(times), spread(ratios(times, limit))
    low, high = median_interval(ratios(times, limit))
    return [name, f"{1e3 * took.median:.1f}", quartiles(took, 1e3), f"{ratio.median:.2f}", f"{low:.2f} to {high:.2f}"]


def quartiles(of: Spread, scale: float) -> str:
    """Spell the middle half of some measurements."""
    return f"{scale * of.low:.1f} to {scale * of.high:.1f}"


def main() -> int:
    """Measure and print; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40, metavar="N", help="starts of each (default: %(default)s)")
    args = parser.parse_args()
    limit, ours = measure(list(commands().values()), max(1, args.runs))
    names = list(commands())
    headers = ["command", "ms", "quartiles", "ratio", "95 % of it"]
    table = render(headers, [row(names[0], limit, limit), row(names[1], ours, limit)])
    met = spread(ratios(ours, limit)).median <= BAR
    print(f"{conditions(('fglaunch',))}; {max(1, args.runs)} starts of each, in turns\n\n{table}\n")
    print(f"bar: at most {BAR:g} times the limit: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
