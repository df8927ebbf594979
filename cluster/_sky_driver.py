"""SkyPilot's side of the `sky` backend, run by the interpreter of an environment that has SkyPilot, not by ours.

A request is a line of JSON on standard input: "id", "do" (one of `ACTIONS`) and the action's arguments. Its answer is a
line on standard output: the same "id", and "value", or "error" (one line for the user). What SkyPilot itself prints
goes to standard error. Nothing of this package is imported here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sky
from sky import exceptions
from sky.client import sdk
from sky.jobs.client import sdk as jobs_sdk
from sky.optimizer import Optimizer
from sky.server import common as server_common

_MOST_OFFERS = 8
_COLOURS = r"\x1b\[[\d;]*m"
_GONE = (exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError)


def hello() -> dict[str, Any]:
    """Say which SkyPilot this is."""
    return {"version": sky.__version__}


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task as SkyPilot reads it.

    Raises:
        ValueError: it is none.
    """
    done: dict[str, Any] = _task(config).to_yaml_config()
    return done


def offers(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where a task could run and at what price an hour for all its nodes, in the order SkyPilot tries them."""
    if not server_common.is_api_server_local():  # only that server knows its clouds, and it tells the best offer
        with sky.Dag() as dag:
            dag.add(_task(config))
        chosen = sdk.get(sdk.optimize(dag)).tasks[0]
        return [_offer(chosen.best_resources, chosen.num_nodes)]
    found: list[Any] = []
    while len(found) < _MOST_OFFERS:
        task = _task(config)
        with sky.Dag() as dag:
            dag.add(task)
        try:
            Optimizer.optimize(dag, blocked_resources=found, quiet=True)
        except exceptions.ResourcesUnavailableError:
            if not found:
                raise
            break
        found.append(task.best_resources)
    return [_offer(resources, task.num_nodes) for resources in found]


def _offer(resources: Any, nodes: int) -> dict[str, Any]:
    return {
        "cloud": str(resources.cloud),
        "region": resources.region,
        "zone": resources.zone,
        "machine": resources.instance_type,
        "accelerators": resources.accelerators,
        "spot": bool(resources.use_spot),
        "nodes": nodes,
        "dollars_per_hour": resources.get_cost(3600.0) * nodes,
    }


def launch(cluster: str, config: Mapping[str, Any], idle_minutes: int | None) -> dict[str, Any]:
    """Launch a cluster anew, and start its job; what was left of an earlier one is torn down first."""
    down(cluster)
    request = sdk.launch(
        _task(config), cluster_name=cluster, idle_minutes_to_autostop=idle_minutes, down=idle_minutes is not None
    )
    job, _ = sdk.stream_and_get(request, output_stream=sys.stderr)
    return describe(cluster) | {"job": job}


def run_job(cluster: str, config: Mapping[str, Any], instead_of: int) -> dict[str, Any]:
    """Start a job on a cluster that is up, in place of another one."""
    sdk.get(sdk.cancel(cluster, job_ids=[instead_of]))
    job, _ = sdk.stream_and_get(sdk.exec(_task(config), cluster_name=cluster), output_stream=sys.stderr)
    return describe(cluster) | {"job": job}


def describe(cluster: str) -> dict[str, Any]:
    """Return how to reach the nodes of a cluster that is up, head first, and what it costs."""
    # The one public way to have SkyPilot write its SSH configuration.
    program = Path(sys.executable).with_name("sky")
    subprocess.run([str(program), "status", cluster], stdout=sys.stderr, check=True)
    handle = sdk.get(sdk.status([cluster]))[0]["handle"]
    config = (Path.home() / ".sky/generated/ssh" / cluster).read_text(encoding="utf-8")
    # ssh reads `~` as the home of the passwd file, SkyPilot that of the environment.
    config = config.replace("~/", f"{Path.home()}/")
    return {
        "ssh_config": config,
        "hosts": re.findall(r"(?m)^Host (\S+)$", config),
        "addresses": [internal for internal, _ in handle.stable_internal_external_ips],
        "offer": _offer(handle.launched_resources, handle.launched_nodes),
    }


def status(cluster: str) -> str:
    """Return a cluster's status as its cloud tells it now: UP, INIT, STOPPED, ...; MISSING if there is none."""
    found = sdk.get(sdk.status([cluster], refresh=sky.StatusRefreshMode.FORCE))
    return str(found[0]["status"].value) if found else "MISSING"


def job_runs(cluster: str, job: int) -> bool:
    """Whether a job of a cluster that is up is on its way or running."""
    found = sdk.get(sdk.job_status(cluster, [job]))
    state = next(iter(found.values()), None)
    return state is not None and not state.is_terminal()


def logs(cluster: str, job: int) -> str:
    """Return what a job has printed."""
    kept = io.StringIO()
    sdk.tail_logs(cluster, job, follow=False, output_stream=kept)
    return re.sub(_COLOURS, "", kept.getvalue())


def down(cluster: str) -> None:
    """Tear a cluster down; no error if there is none."""
    with contextlib.suppress(*_GONE):
        sdk.get(sdk.down(cluster))


def launch_managed(config: Mapping[str, Any], name: str) -> int:
    """Hand a task to SkyPilot's managed jobs; returns its number."""
    numbers, _ = sdk.stream_and_get(jobs_sdk.launch(_task(config), name=name), output_stream=sys.stderr)
    return int(numbers[0])


def managed(job: int) -> dict[str, Any] | None:
    """Return how a managed job fares, None if it is over."""
    records, *_ = sdk.get(jobs_sdk.queue_v2(refresh=True, skip_finished=True, job_ids=[job]))
    if not records:
        return None
    return {"status": str(records[0].status.value), "recoveries": records[0].recovery_count or 0}


def cancel_managed(job: int) -> None:
    """End a managed job."""
    sdk.get(jobs_sdk.cancel(job_ids=[job]))


def _task(config: Mapping[str, Any]) -> Any:
    return sky.Task.from_yaml_config(dict(config))


ACTIONS: dict[str, Callable[..., Any]] = {
    action.__name__: action
    for action in (
        hello,
        validate,
        offers,
        launch,
        run_job,
        describe,
        status,
        job_runs,
        logs,
        down,
        launch_managed,
        managed,
        cancel_managed,
    )
}


def main() -> None:
    """Serve the one who started this, until it leaves."""
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        number, action = request.pop("id"), request.pop("do")
        try:
            answer = {"value": ACTIONS[action](**request)}
        except Exception as error:  # SkyPilot's errors have no common ancestor
            answer = {"error": re.sub(_COLOURS, "", str(error)) or type(error).__name__}
        print(json.dumps({"id": number, **answer}), file=sink, flush=True)
    os._exit(0)  # SkyPilot's threads would be waited for


if __name__ == "__main__":
    main()
