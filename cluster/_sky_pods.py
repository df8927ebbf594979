"""Where SkyPilot's machines may be pods of Kubernetes: how what runs there learns that its pod is to go. Pure.

Kubernetes sends SIGTERM to a container's first process alone, and SkyPilot's ignores it. Before that it runs the pod's
`preStop` hook, and the grace period counts from there. Ours makes a file, which agents watch
(`fgtrain.notices.kubernetes`), and waits until they are gone. SkyPilot's own hooks (`config.hooks`) are no help: only
the first node of a cluster runs them.

Source: kubernetes.io/docs/concepts/containers/container-lifecycle-hooks;
sky/templates/kubernetes-ray.yml.j2, whose container has this name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VARIABLE = "FGLAUNCH_POD_ENDS"  # as in fgtrain.notices.kubernetes: names the file
FILE = "/dev/shm/fglaunch-pod-ends"  # memory of the pod itself, which no other pod has
_CONTAINER = "ray-node"
_PODS = ("k8s", "kubernetes", "ssh", "*")  # `ssh`: machines that SkyPilot has made a Kubernetes cluster of
_SPARE_S = 5  # a hook that takes the whole grace counts as failed

_HOOK = """\
touch {file}
agents() {{
    for found in $(grep -ls 'fgtrain[.]agent' /proc/[0-9]*/cmdline); do
        grep -qsF '{variable}={file}' "${{found%cmdline}}environ" && return
    done
    false
}}
waited=0
while [ $waited -lt {wait_s} ] && agents; do
    sleep 1
    waited=$((waited + 1))
done
"""


def possible(resources: Mapping[str, Any]) -> bool:
    """Whether any choice of SkyPilot's `resources` may be a pod."""
    choices = [*resources.get("any_of", []), *resources.get("ordered", [])] or [{}]
    places = [{**resources, **choice} for choice in choices if isinstance(choice, Mapping)]
    named = [str(place.get("infra") or place.get("cloud") or "*") for place in places]
    return any(name.lower().split("/")[0] in _PODS for name in named)


def environment(resources: Mapping[str, Any]) -> dict[str, str]:
    """Return what programs need in their environment to learn of their pod's end."""
    return {VARIABLE: FILE} if possible(resources) else {}


def overrides(resources: Mapping[str, Any], grace_s: int) -> dict[str, Any]:
    """Return what a task of SkyPilot's needs for that; nothing where no machine can be a pod."""
    if not possible(resources):
        return {}
    command = ["/bin/sh", "-c", hook(FILE, grace_s)]
    container = {"name": _CONTAINER, "lifecycle": {"preStop": {"exec": {"command": command}}}}
    pod = {"spec": {"terminationGracePeriodSeconds": grace_s, "containers": [container]}}
    return {"config": {kind: {"pod_config": pod} for kind in ("kubernetes", "ssh")}}


def hook(file: str, grace_s: int) -> str:
    """Return the shell commands: make the file, wait for the agents that watch it. They do nothing where none runs."""
    return _HOOK.format(file=file, variable=VARIABLE, wait_s=max(0, grace_s - _SPARE_S))
