"""`fglaunch attach RUN`: watch a run whose supervisor is another process; supervise it if that one is gone."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster import Cluster, ClusterError, Node, Unreachable
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher import queued
from launcher.abreast import each
from launcher.clusters import find_cluster
from launcher.display import make_display
from launcher.events import Event, decode_events, whole_lines
from launcher.fleet import still_runs
from launcher.foreground import conclude, resume_command, say, supervise_here
from launcher.outcome import Outcome
from launcher.ownership import owner_of
from launcher.prepare import default_store
from launcher.status import Status, existing_run, live_state, read_status
from launcher.takeover import last_term

_POLL_S = 0.2
_EVENTS = "events.jsonl"
_HISTORY_BYTES = 256 << 10  # a thousand steps or so; a run of days has noted much more


def call(args: argparse.Namespace) -> int:
    """Show the run's events until it ends, and return what its supervisor returned; Ctrl-C leaves the run alone.

    When the supervisor is gone and the agents go on without it, this process takes over.
    """
    runs = RunStore(open_store(args.store or default_store()), args.run)
    run = existing_run(runs)
    if (code := queued.attach(run, runs)) is not None:
        return code
    status = read_status(runs)
    cluster = find_cluster(status.cluster if status else "local", Path(run.cwd))
    offsets: dict[str, int] = {}
    display = make_display()
    try:
        while True:
            ended = live_state(status, runs) != "running"
            folders = status.nodes if status else ()
            for news in each(cluster, lambda folder: _news(cluster, folder, offsets), folders):
                if isinstance(news, ClusterError):
                    raise news
                for event in news:
                    display(event)
            if ended:
                break
            time.sleep(_POLL_S)
            status = read_status(runs)
    finally:
        display.close()
    term = last_term(runs)
    owner = owner_of(run, runs.store.url)
    if live_state(status, runs) == "lost" and term and still_runs(cluster, term, owner):
        say(f"the supervisor of {args.run} on {term.host} is gone and its agents are not: taking over")
        return supervise_here(run, runs, term.cluster, term.world, None)
    return _conclude(runs, status)


def _news(cluster: Cluster, folder: str, offsets: dict[str, int]) -> list[Event]:
    """Return the events of a node that are new; at first, the last ones of those that it has noted so far."""
    node = Node(folder, "", folder, "", "")
    if folder not in offsets:
        try:
            offsets[folder] = max(0, cluster.size(node, _EVENTS) - _HISTORY_BYTES)
        except Unreachable:
            return []
    whole = whole_lines(cluster.read(node, _EVENTS, offsets[folder]))
    offsets[folder] += len(whole)
    return list(decode_events(whole))


def _conclude(runs: RunStore, status: Status | None) -> int:
    state = live_state(status, runs)
    if state in ("lost", "created") or status is None:
        say(f"{runs.run} has no supervisor; `{resume_command(runs)}` goes on")
        return 1
    code = status.exit_code
    if code is None:
        code = 0 if state in ("finished", "stopped") else 1
    conclude(runs, Outcome(state, code, status.message))
    return code
