"""Work on a stream of inputs by threads, with no more of it in memory than they are busy with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_parallel(work: Callable[[A], B], inputs: Iterable[A], threads: int) -> Iterator[B]:
    """Yield `work(x)` for each input, as they end; inputs are drawn in the caller's thread, two a thread ahead.

    Raises:
        Whatever `work` raises first; what has begun by then is waited for, nothing else is begun.
    """
    source = iter(inputs)
    with ThreadPoolExecutor(threads, thread_name_prefix="fgtrain-dcp") as pool:
        running: set[Future[B]] = set()
        try:
            while True:
                running |= {pool.submit(work, x) for x in islice(source, 2 * threads - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
