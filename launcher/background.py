"""The supervisor of a detached run: `python -m launcher.background STORE RUN CLUSTER WORLD [PORT]`."""

from __future__ import annotations

import sys

import msgspec

from fgtrain.plan import World
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.foreground import supervise_here
from launcher.status import existing_run


def main() -> int:
    """Supervise the run to its end."""
    url, name, cluster, world, *port = sys.argv[1:]
    runs = RunStore(open_store(url), name)
    chosen = msgspec.json.decode(world, type=World)
    return supervise_here(existing_run(runs), runs, cluster, chosen, int(port[0]) if port else None)


if __name__ == "__main__":
    sys.exit(main())
