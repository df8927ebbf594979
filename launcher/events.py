"""What rank 0 of a run writes for displays: one JSON object a line. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Event = dict[str, Any]


def whole_lines(data: bytes) -> bytes:
    """Return the lines that are complete; the rest is still being written."""
    return data[: data.rfind(b"\n") + 1]


def decode_events(lines: bytes) -> Iterator[Event]:
    """Yield events; half a line, left by a worker that was killed while it wrote, is passed over."""
    for line in lines.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
