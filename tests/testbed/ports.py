"""Whether a cluster tells ports that are in use from free ones, on a machine whose ports others use too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

_TRIES = 3


def told_apart(
    free: Callable[[], int],
    in_use: Callable[[int], bool],
    listen: Callable[[int], contextlib.AbstractContextManager[object]],
) -> bool:
    """Tell whether a free port is known to be free, in use while somebody listens there, and free again afterwards.

    With another one, should a connection of somebody else's get it meanwhile.
    """

    def seen() -> list[bool]:
        port = free()
        found = [in_use(port)]
        with listen(port):
            found.append(in_use(port))
        return [*found, in_use(port)]

    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            if seen() == [False, True, False]:
                return True
    return False
