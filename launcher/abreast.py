"""Asking the nodes of a run: all at once, where their cluster can, so that many cost the time that one takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from cluster import Cluster, ClusterError
from cluster._abreast import Abreast

T = TypeVar("T")
R = TypeVar("R")


def each(cluster: Cluster, do: Callable[[T], R], items: Sequence[T]) -> list[R | ClusterError]:
    """Do something for each item, which is about a node: at once if the cluster can, else one after the other.

    Returns what came of it in the order of the items; where that was a ClusterError, this. `do` must not call `each`.
    """
    trial = tried(do)
    return cluster.abreast(trial, items) if isinstance(cluster, Abreast) else [trial(item) for item in items]


def tried(do: Callable[[T], R]) -> Callable[[T], R | ClusterError]:
    """Return what does the same, but returns a ClusterError that it raises."""

    def trial(item: T) -> R | ClusterError:
        try:
            return do(item)
        except ClusterError as error:
            return error

    return trial


def aside(cluster: Cluster, do: Callable[[], R]) -> Future[R]:
    """Do something about nodes that may take minutes beside all else, if the cluster can; else it is done now.

    At its end this process does not wait for it, but for what it asks of the nodes just then.
    """
    done: Future[R] = Future()

    def run() -> None:
        try:
            done.set_result(do())
        except BaseException as error:  # whoever asks for the result gets it
            done.set_exception(error)

    if isinstance(cluster, Abreast):
        threading.Thread(target=run, name="aside", daemon=True).start()
    else:
        run()
    return done
