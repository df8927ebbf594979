"""Many nodes asked at once, by a thread each: they only wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 256


@runtime_checkable
class Abreast(Protocol):
    """What a cluster may offer beside `Cluster`: many nodes asked in the time that one takes."""

    def abreast(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Do something that does not raise for each item, all at once; returns what came of it, in their order."""


class ByThreads:
    """What makes a cluster `Abreast`."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "nodes")  # has some once it is used, and keeps them

    def abreast(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """See `Abreast`."""
        return list(self._threads.map(do, items))
