"""Scalars as TensorBoard event files, without torch.utils.tensorboard's slow imports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class ScalarWriter:
    """Appends scalars to an event file in `folder`, made at the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the numbers of one metrics row; `val_` names go under val/, the others under train/."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder))
        values = [Summary.Value(tag=t, simple_value=float(v)) for t, v in _tagged(row)]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


def preload() -> None:
    """Import what `ScalarWriter.add` will."""
    import tensorboard.summary.writer.event_file_writer  # noqa: F401
    from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401


def _tagged(row: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in row.items():
        if name != "step":
            yield (f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"), value
