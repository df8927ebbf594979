"""What is said to Slurm, and what it answers: settings, scripts, command lines, outputs. Pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from cluster import ClusterError, Command, JobState, Node, Request

LISTENS = (
    "import socket, sys; host, port = sys.argv[1:];"
    "kinds = {f[0] for f in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)};"
    "s = socket.socket(socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6);"
    "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
    "s.bind((host, int(port))); print(s.getsockname()[1])"
)
"""What listens on a port of an address for a moment, and prints it; `python -c` with the two as arguments."""
_DEFERRED = ("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
_ALIVE = (*_DEFERRED, "COMPLETING", "RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
"""Source: squeue(1), JOB STATE CODES."""
_EXCLUDE = re.compile(r"(?:--exclude(?:=|\s+)|-x\s*)(.+)")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `clusters.toml` may say of a Slurm cluster.

    Attributes:
        account, partition, qos, time, constraint, exclude: as sbatch's options of these names.
        gres: the generic resource that `--gpus` counts, as `gpu` or `gpu:a100`; "": none is asked for.
        gpus_per_node: ask by `--gpus-per-node` instead, of this type ("": any).
        cpus: CPUs a node.
        mem: memory a node, as `64G`.
        extra: more options of sbatch, as `["--exclusive", "--mail-type=END"]`.
        step_extra: more options of the srun that starts a program on a node.
        setup: lines of shell before the program starts, as `["module load cuda"]`.
        requeue: whether Slurm may put the job back in the queue when it takes its nodes away.
        lead_s: how long before the end of its time the job is told.
        at_limit: what it then does: be put back in the queue, submit a successor, or stop.
        work: folder for working folders, which all nodes and this machine see.
        python: interpreter on the nodes; this one if not said.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str = "gpu"
    gpus_per_node: str | None = None
    cpus: int | None = None
    mem: str | None = None
    extra: tuple[str, ...] = ()
    step_extra: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    requeue: bool = True
    lead_s: int = 120
    at_limit: Literal["requeue", "submit", "stop"] = "requeue"
    work: str | None = None
    python: str | None = None


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Check what the user's configuration says.

    Raises:
        ClusterError: names what is wrong.
    """
    try:
        settings = msgspec.convert(dict(values), Settings)
    except msgspec.ValidationError as error:
        known = ", ".join(Settings.__struct_fields__)
        raise ClusterError(f"slurm: {error}; it may have: {known}") from error
    if settings.at_limit == "requeue" and not settings.requeue:
        raise ClusterError('slurm: at_limit = "requeue" needs requeue = true; or at_limit = "submit"')
    if not 0 < settings.lead_s < 65536:  # Source: sbatch(1), --signal
        raise ClusterError(f"slurm: lead_s = {settings.lead_s}: from 1 to 65535 seconds")
    return msgspec.structs.replace(settings, work=settings.work and _absolute(settings.work))


def _absolute(work: str) -> str:
    """Return a folder from the root on: a relative one would be another for the job than for whoever submits it."""
    found = os.path.expanduser(work)  # noqa: PTH111  (of an unknown user: stays, and is refused)
    if not found.startswith("/") or "$" in found:
        raise ClusterError(f"slurm: work = {work!r}: a folder from / or ~/ on is needed, without variables")
    return found


# -- jobs -------------------------------------------------------------------------------------------------------------


def job_options(settings: Settings, request: Request, project: Path, log: str) -> Iterator[str]:
    """Yield the options of sbatch, one an element.

    Args:
        settings: what the user says of the cluster.
        request: the job.
        project: the folder it starts in.
        log: the file its output goes to; `%j` in it is the job's number.
    """
    yield f"--job-name={request.run}"
    yield f"--nodes={request.nodes}"
    yield "--ntasks-per-node=1"
    for name in ("account", "partition", "qos", "time", "constraint", "exclude", "mem"):
        if (value := getattr(settings, name)) is not None:
            yield f"--{name}={value}"
    if settings.cpus is not None:
        yield f"--cpus-per-task={settings.cpus}"
    if settings.gpus_per_node is not None:
        yield f"--gpus-per-node={settings.gpus_per_node}{':' * bool(settings.gpus_per_node)}{request.gpus}"
    elif settings.gres:
        yield f"--gres={settings.gres}:{request.gpus}"
    yield "--requeue" if settings.requeue else "--no-requeue"
    yield f"--signal=B:USR1@{settings.lead_s}"
    yield "--open-mode=append"
    yield f"--output={log}"
    yield f"--chdir={project}"
    yield from settings.extra


def own_exclude(settings: Settings) -> str:
    """Return the nodes that the user wants to have none of: a list, or a file's name, if there is a slash in it.

    Of several words on it the last counts, as for sbatch, which reads `extra` after `exclude`.
    """
    return [settings.exclude or "", *(found[1] for x in settings.extra if (found := _EXCLUDE.fullmatch(x)))][-1]


def keeping_off(settings: Settings, exclude: str) -> Settings:
    """Return settings whose jobs have none of these nodes, whatever the user's own words on it were."""
    extra = tuple(option for option in settings.extra if not _EXCLUDE.fullmatch(option))
    return msgspec.structs.replace(settings, exclude=exclude or None, extra=extra)


def merged(nodes: str, more: Sequence[str]) -> str:
    """Return a list of nodes, as Slurm writes them, with more of them."""
    return ",".join([*([nodes] if nodes else []), *more])


def parse_node_file(text: str) -> str:
    """Return the list of nodes that is in a file for `--exclude`."""
    return ",".join(name for line in text.splitlines() for name in line.partition("#")[0].split())


def deaf_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command line by which a program does not hear SIGTERM, which all of a job do that is put back."""
    return ("/bin/sh", "-c", """trap '' TERM; exec "$@\"""", "fglaunch", *argv)


def job_script(settings: Settings, request: Request, project: Path, work: Path, python: str) -> str:
    """Return a batch script whose only program is what the request names."""
    log = f"{str(work).replace('%', '%%')}/{request.run}/slurm-%j.log"
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {quote(option)}" for option in job_options(settings, request, project, log)),
            "trap '' USR1  # it comes early if there is little time; the program below listens from its start",
            f"export FGLAUNCH_WORK={shlex.quote(str(work))}",
            "export FGLAUNCH_LEAVES_NODES=1",
            *settings.setup,
            f"exec {shlex.join([python, *request.args])}",
            "",
        ]
    )


def quote(option: str) -> str:
    """Quote an option for a line of `#SBATCH`, which is read much like a shell's."""
    name, equals, value = option.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if value else option


def parse_job(output: str, now_starts: int | None = None) -> JobState | None:
    """Read `scontrol --oneliner show job`.

    Args:
        output: its output.
        now_starts: as which start the asking process runs, if it is of the job: a later one means that it was put back.

    Returns:
        How the job fares, None if it is over.
    """
    fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", output))
    state = fields.get("JobState", "")
    if state not in _ALIVE:
        return None
    starts = int(fields.get("Restarts", "0"))
    back = now_starts is not None and starts > now_starts
    reason = fields.get("Reason", "None")
    return JobState(
        waits=back or state in _DEFERRED,
        text=state if reason == "None" else f"{state} ({reason})",
        starts=starts,
        leaving=back or fields.get("PreemptTime", "None") not in ("None", "N/A", "Unknown"),
        called_off=state == "COMPLETING" and not back and reason != "TimeLimit",
    )


# -- steps ------------------------------------------------------------------------------------------------------------

_STEP = """\
cd -- "$1" || { echo "error cannot enter $1"; exit 126; }
(: >>"$2") 2>/dev/null || { echo "error cannot write $2: is it in a folder that all nodes see?"; exit 126; }
exec 3>&1 >>"$2" 2>&1
shift 2
command -v "$1" >/dev/null || { echo "error no program $1" >&3; exit 127; }
echo "started $$ $SLURM_STEP_ID" >&3
exec 3>&- "$@"
"""


def step_argv(job: str, node: Node, command: Command, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the srun that starts a program as a step of its own beside others, and tells once it has."""
    log = f"{node.folder}/{command.name}.log"
    return (*_srun(job, node.name, extra), f"--job-name={command.name}", *_sh(_STEP, node.project, log, *command.argv))


def ask_argv(job: str, node: Node, *argv: str) -> tuple[str, ...]:
    """Return the srun that runs a short program on a node."""
    return (*_srun(job, node.name, ()), *argv)


def _srun(job: str, node: str, extra: Sequence[str]) -> tuple[str, ...]:
    where = (f"--jobid={job}", f"--nodelist={node}", "--nodes=1", "--ntasks=1")
    return ("srun", *where, "--overlap", "--mem=0", "--cpu-bind=none", "--unbuffered", "--input=none", *extra)


def _sh(script: str, *args: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script, "fglaunch", *args)


def signal_argv(job: str, step: str, name: str) -> tuple[str, ...]:
    """Return the command line that sends a signal to all processes of a step."""
    return ("scancel", "--ctld", f"--signal={name}", f"{job}.{step}")


def exit_status(srun: int) -> int:
    """Return a program's exit status, negative for a signal, from its srun's."""
    return 128 - srun if srun > 128 else srun


def parse_nodes(output: str) -> dict[str, str]:
    """Read `scontrol --oneliner show node`: each node's name and address, in order."""
    return dict(re.findall(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", output, re.MULTILINE))


def parse_cpus(text: str) -> list[int]:
    """Read SLURM_JOB_CPUS_PER_NODE, as `8(x2),4`: the CPUs of each node, in order."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(cpus) for cpus, times in found for _ in range(int(times or 1))]
