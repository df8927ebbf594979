"""Whether to compress snapshots: what lossless codecs take off the chunks of a real run, and how fast. One table.

    python -m benchmarks.compression STORE RUN

Every chunk of the run's newest snapshot is compressed whole, as it lies and with its bytes shuffled (all first bytes of
the floats, all second ones, ...), which is what makes exponents compress. A codec wins where sending fewer bytes
saves more time than compressing takes: above the last column, in MB/s of upload on one core, it only costs.
`zstandard` and `lz4` are measured where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.table import conditions, render
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store

Codec = Callable[[bytes], bytes]


def codecs() -> Iterator[tuple[str, Codec]]:
    """Yield what is there."""
    yield "zlib 1", lambda data: zlib.compress(data, 1)
    others: tuple[tuple[str, str, Callable[[Any], Codec]], ...] = (
        ("zstd 1", "zstandard", lambda m: m.ZstdCompressor(level=1).compress),
        ("zstd -5", "zstandard", lambda m: m.ZstdCompressor(level=-5).compress),
        ("lz4", "lz4.frame", lambda m: m.compress),
    )
    for name, module, make in others:
        try:
            yield name, make(importlib.import_module(module))
        except ImportError:
            continue


def shuffled(data: bytes) -> bytes:
    """Put the four bytes of each float apart."""
    whole = len(data) // 4 * 4
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, 4).T.tobytes() + data[whole:]


def measure(chunks: list[bytes], codec: Codec, shuffle: bool) -> tuple[float, float]:
    """Return the share of bytes that is left, and MB/s on this core."""
    before, after, started = sum(map(len, chunks)), 0, time.perf_counter()
    for chunk in chunks:
        after += len(codec(shuffled(chunk) if shuffle else chunk))
    return after / before, before / 1e6 / (time.perf_counter() - started)


def main() -> None:
    """Measure every codec and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("run")
    args = parser.parse_args()
    runs = RunStore(open_store(args.store), args.run)
    manifest = runs.manifest(runs.manifest_names()[-1])
    rows = []
    for group, held in sorted(manifest.groups.items()):
        chunks = [runs.get_chunk(digest) for digest in dict.fromkeys(held.chunks)]
        size = f"{group}, {sum(map(len, chunks)) / 1e6:.1f} MB"
        for name, codec in codecs():
            for shuffle in (False, True):
                left, speed = measure(chunks, codec, shuffle)
                what = f"{name}{', shuffled' if shuffle else ''}"
                rows.append([size, what, f"{left:.3f}", f"{speed:.0f}", f"{speed * (1 - left):.0f}"])
    print(conditions())
    print(render(["group", "codec", "bytes left", "MB/s a core", "wins below MB/s"], rows))


if __name__ == "__main__":
    main()
