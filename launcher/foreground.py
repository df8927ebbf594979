"""Supervising a run from the command line: here, or in a process of its own that outlives the terminal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster import Cluster, ClusterError, Fewer, Furnished, Node, Offer, Rented, TwoKinds, Unreachable
from fgtrain.errors import UserError
from fgtrain.plan import World, check_world
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import Store
from launcher import exclusions
from launcher.clusters import find_cluster, work_root
from launcher.display import make_display
from launcher.fleet import seat_count
from launcher.furnishing import furnish
from launcher.outcome import Outcome
from launcher.ownership import owner_of
from launcher.precheck import check_hardware
from launcher.prepare import check_training_installed, world_notes
from launcher.status import live_state, read_status
from launcher.stores import meeting_places
from launcher.supervisor import Supervisor

_START_TIMEOUT_S = 120.0


def say(text: str) -> None:
    """Tell the user something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def check_start(run: RunFile, cluster: Cluster, world: World, port: int | None, *, queued: bool = False) -> list[str]:
    """Check all that starting on a cluster needs, leaving no trace; returns what the user should know.

    `queued`: its nodes are not known before a job has them.

    Raises:
        UserError, ClusterError
    """
    check_world(run.plan, world)
    if queued:
        return []
    if port is not None:
        _check_port(run.name, cluster, port)
    if cluster.name != "local":
        _check_extras(run, cluster, world)
        nodes, notes = _nodes_there(run.name, cluster, world)
        return notes + _check_nodes(nodes, cluster, world)
    check_training_installed(run.recipe, world.engine)
    return world_notes(world)


def _check_extras(run: RunFile, cluster: Cluster, world: World) -> None:
    """Refuse what the environments that a cluster makes lack: a worker would find out, after minutes."""
    if not isinstance(cluster, Furnished) or cluster.extras is None:
        return
    strategy, engine = run.recipe.strategy.extra, "deepspeed" if world.engine == "deepspeed" else ""
    for extra, who in ((strategy, "the recipe's strategy"), (engine, f"--engine {world.engine}")):
        if extra and extra not in cluster.extras:
            raise UserError(
                f"{who} needs {extra}, which the environments that are made on this cluster's nodes lack:"
                f' put extras = ["{extra}"] into its entry in clusters.toml'
            )


def _nodes_there(run: str, cluster: Cluster, world: World) -> tuple[list[Node], list[str]]:
    """Return the nodes that a run could begin on, and what the user should know of those that are missing.

    Raises:
        ClusterError: there are not enough.
    """
    try:
        return cluster.nodes(run, seat_count(world)), []
    except Fewer as error:
        if len(error.nodes) < world.nodes:
            raise
        note = f"{error}: the run begins with fewer, and takes others in when they are there"
        return error.nodes, [note]


def _check_nodes(nodes: Sequence[Node], cluster: Cluster, world: World) -> list[str]:
    try:
        return check_hardware(nodes, cluster, world)
    except Unreachable:
        if isinstance(cluster, Rented):  # they were rented once, and may be lost: then others will be
            return []
        raise


def check_store(store: Store, name: str, cluster: Cluster) -> None:
    """Refuse a store that the nodes of the cluster of this name cannot see.

    Raises:
        UserError
    """
    if not cluster.shares_files and store.url.startswith(("file:", "memory:")):
        raise UserError(
            f"store {store.url}: the nodes of {name} do not see this machine's files; name one that they reach"
            f" (--store s3://...), or put shared = true under [{name}] in clusters.toml if they do"
        )


def _check_port(run: str, cluster: Cluster, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: ports go from 1 to 65535; leave --port out to get a free one")
    if cluster.port_in_use(meeting_places(cluster, run, cluster.nodes(run, 1))[0], port):
        raise UserError(f"--port {port}: something listens there already; leave --port out to get a free one")


def make_ready(
    run: RunFile, runs: RunStore, cluster_name: str, cluster: Cluster, world: World, *, deadline: bool = False
) -> None:
    """Make the working folders of a run's nodes, its own from now on.

    Machines that are to be rented are only looked for. Its supervisor has them rented, when it has chosen the kind:
    either may do with a `deadline`.

    Raises:
        Occupied: another run of its name is at work on one.
        ClusterError: there are not enough nodes, or one cannot be made.
    """
    owner = owner_of(run, runs.store.url)
    if isinstance(cluster, Rented):
        nodes = usable_nodes(runs, cluster_name, cluster, world)
        for node in nodes:
            cluster.claim(node, owner)
        if cluster.held(runs.run) is None:
            offers(cluster, len(nodes), deadline=deadline)
        return
    furnish(cluster, owner, world, exclusions.excluded_names(runs, cluster_name))  # its supervisor tells of the rest


def offers(cluster: Rented, count: int, *, deadline: bool) -> list[Offer]:
    """Return what a run's machines could be rented as; with a `deadline`, of both kinds, as the first to be tried.

    Raises:
        ClusterError: nothing fits, or nobody can be asked.
    """
    if not (deadline and isinstance(cluster, TwoKinds)):
        return cluster.offers(count)
    spot: list[Offer] = []
    with contextlib.suppress(ClusterError):
        spot = cluster.offers(count, spot=True)
    try:
        return spot + cluster.offers(count, spot=False)
    except ClusterError:
        if not spot:
            raise
        return spot


def usable_nodes(runs: RunStore, cluster_name: str, cluster: Cluster, world: World) -> list[Node]:
    """Return the nodes that a run begins on: none that is excluded.

    Raises:
        ClusterError: there are not enough.
    """
    excluded = exclusions.excluded_names(runs, cluster_name)
    return exclusions.pick(cluster, runs.run, seat_count(world), excluded, least=world.nodes)


def supervise_here(run: RunFile, runs: RunStore, cluster: str, world: World, port: int | None) -> int:
    """Supervise a run on a named cluster until it ends, showing what happens; returns the exit code."""
    display, found = make_display(), find_cluster(cluster, Path(run.cwd))
    try:
        outcome = Supervisor(run, runs, cluster, found, world, display, port).supervise()
    finally:
        display.close()
    conclude(runs, outcome)
    if outcome.needs_no_nodes:
        give_back(run.name, found)
    return outcome.exit_code


def give_back(run: str, cluster: Cluster) -> None:
    """End the rent of a run's machines, if they are rented; should that fail, they end when they are idle."""
    if isinstance(cluster, Rented):
        try:
            cluster.give_back(run)
        except ClusterError as error:
            say(f"{run}: its machines may still be rented: {error}")


def conclude(runs: RunStore, outcome: Outcome) -> None:
    """Print how a run ended and what to do or look at next."""
    if outcome.traceback:
        say(outcome.traceback.rstrip())
    if outcome.state == "finished":
        say(where_results_are(runs))
    elif outcome.state == "fenced":
        say(f"{runs.run}: {outcome.message}")
    elif outcome.state == "stopped":
        say(f"{runs.run}: {outcome.message}; `{resume_command(runs)}` goes on")
    else:
        say(f"{runs.run} failed: {outcome.message} (logs: fglaunch logs {runs.run} --store {runs.store.url})")


def where_results_are(runs: RunStore) -> str:
    """Return the line that ends a finished run."""
    base = f"{runs.store.url.rstrip('/')}/runs/{runs.run}"
    return f"run {runs.run} finished: metrics {base}/metrics.jsonl, weights {base}/weights.safetensors"


def resume_command(runs: RunStore) -> str:
    """Return the command that goes on with a run."""
    return f"fglaunch resume {runs.run} --store {runs.store.url}"


def detach(runs: RunStore, cluster: str, world: World, port: int | None) -> int:
    """Start a supervisor in the background and return once it has the run in hand, or has brought it to its end.

    Raises:
        UserError: it has not within 120 s, or has failed at once.
    """
    log = work_root() / runs.run / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = [
        sys.executable,
        "-m",
        "launcher.background",
        runs.store.url,
        runs.run,
        cluster,
        msgspec.json.encode(world).decode(),
    ]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*argv, *([str(port)] if port else [])],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        over = process.poll() is not None or time.monotonic() > deadline  # first: its last word comes before its end
        if _in_hand(runs, process.pid):
            break
        if over:
            raise UserError(f"the supervisor of {runs.run} did not start: see {log}")
        time.sleep(0.05)
    print(runs.run)
    say(f"{runs.run} goes on in the background: fglaunch attach {runs.run} --store {runs.store.url}")
    return 0


def _in_hand(runs: RunStore, pid: int) -> bool:
    """Tell whether the supervisor of this process ID has shown that it lives, or has ended the run without failure."""
    status = read_status(runs)
    return status is not None and status.pid == pid and live_state(status, runs) in ("running", "stopped", "finished")


def node_folders(runs: RunStore) -> list[Path]:
    """Return the working folders of a run's nodes on this machine."""
    status = read_status(runs)
    return [Path(f) for f in status.nodes] if status else []
