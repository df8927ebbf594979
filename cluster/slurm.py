"""Slurm: jobs that carry their own supervisor, and the nodes of the job that this process runs in, a step a program.

`open_cluster` is for the supervisor inside a job: a batch job's, or yours in `salloc`. All nodes, and the machine that
submits, see one folder of working folders.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cluster import ClusterError, Command, Hardware, JobState, Node, Owner, Request, _machine, check_project
from cluster import _slurm_words as words
from cluster._claims import take
from cluster._host_claims import signer_lives

_CALL_S = 60.0
_START_S = 60.0
_KILL_S = 30.0
_END_S = 5.0
_IN_USE, _DENIED = 98, 13  # Source: errno(3)


def _call(*argv: str, stdin: str | None = None, clean: bool = False, deaf: bool = False) -> str:
    """Run a client of Slurm, `deaf` to what ends this job, and return what it printed.

    Raises:
        ClusterError: it failed, with the last thing that it said.
    """
    # What a job's environment says of that job would be taken for options of the next.
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(
            words.deaf_argv(argv) if deaf else argv,
            input=stdin or "",
            env=env if clean else None,
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"no {argv[0]} here: is this a machine of the Slurm cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{argv[0]} does not answer in {_CALL_S:g} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ClusterError(f"{argv[0]}: {said[-1].removeprefix(f'{argv[0]}: ').removeprefix('error: ')}")
    return done.stdout


def _no_folder(folder: Path, error: OSError) -> ClusterError:
    return ClusterError(
        f"cannot make the working folder {folder}: {error.strerror};"
        " `work` of the cluster's settings names a folder that all nodes see"
    )


class SlurmQueue:
    """Submits jobs whose batch script is a run's supervisor."""

    def __init__(self, settings: words.Settings, project: Path, work: Path) -> None:
        """Make one whose jobs start in `project` and have working folders below `work`."""
        self._settings, self._project = settings, project
        self._work = Path(settings.work) if settings.work else work
        self.lead_s = float(settings.lead_s)
        self.own = os.environ.get("SLURM_JOB_ID", "")

    def script(self, request: Request) -> str:
        """See `Queue`."""
        python = self._settings.python or sys.executable
        settings = self._settings
        if request.avoid:
            settings = words.keeping_off(settings, self._excluded(request.avoid))
        return words.job_script(settings, request, self._project, self._work, python)

    def _excluded(self, avoid: Sequence[str]) -> str:
        """Return the nodes to avoid with those that the user has excluded; Slurm refuses names of nodes it has not."""
        own = words.own_exclude(self._settings)
        if "/" in own:
            try:
                own = words.parse_node_file((self._project / own).read_text())
            except OSError as error:
                raise ClusterError(f"exclude = {own}: {error.strerror}") from error
        known = self._names()
        return words.merged(own, [name for name in avoid if name in known])

    def _names(self, *options: str) -> set[str]:
        """Return the names of all nodes that Slurm has."""
        return set(_call("sinfo", "--all", "--noheader", "--Node", "--format=%N", *options).split())

    def submit(self, request: Request) -> str:
        """See `Queue`."""
        check_project(self._project)  # Slurm would start the job in /tmp
        try:
            (self._work / request.run).mkdir(parents=True, exist_ok=True)  # or Slurm cannot write the job's output
        except OSError as error:
            raise _no_folder(self._work / request.run, error) from error
        return self._submit(self.script(request))

    def _submit(self, script: str, *options: str) -> str:
        return _call("sbatch", "--parsable", *options, stdin=script, clean=True).split(";")[0].strip()

    def look(self, job: str) -> JobState | None:
        """See `Queue`."""
        now_starts = int(os.environ.get("SLURM_RESTART_COUNT", "0")) if job == self.own else None
        try:
            return words.parse_job(_call("scontrol", "--oneliner", "show", "job", job), now_starts)
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return None
            raise

    def cancel(self, job: str) -> None:
        """See `Queue`."""
        _call("scancel", job)

    def log(self, run: str, job: str) -> Path:
        """See `Queue`."""
        return self._work / run / f"slurm-{job}.log"

    def again(self, job: str, avoid: Sequence[str]) -> str:
        """See `Queue`."""
        return "" if self._settings.at_limit == "stop" else self.move(job, avoid)

    def move(self, job: str, avoid: Sequence[str]) -> str:
        """See `Queue`: by a successor where the settings want one, else by a requeue, if they allow that."""
        exclude = self._excluded(avoid) if avoid else ""
        if self._settings.at_limit == "submit":
            script = _call("scontrol", "write", "batch_script", job, "-")
            options = [f"--exclude={exclude}"] if exclude else []  # goes before what the script says
            return self._submit(script, f"--dependency=afterany:{job}", *options)
        if not self._settings.requeue:
            return ""
        self._requeue(job, exclude)
        return job

    def _requeue(self, job: str, exclude: str) -> None:
        """Put this process's own job back, for other nodes; Slurm then ends it, and so this process, in KillWait.

        What nodes a job is not to have can be changed only while it waits, and so not before. Should that fail, it may
        be given the same ones, and will ask again.
        """
        if exclude:
            self._check_enough(exclude)
        _call("scontrol", "requeue", job, deaf=True)
        if exclude:
            with contextlib.suppress(ClusterError):
                _call("scontrol", "update", f"JobId={job}", f"ExcNodeList={exclude}", deaf=True)

    def _check_enough(self, exclude: str) -> None:
        """Refuse to wait for nodes that there are not."""
        partition = [f"--partition={self._settings.partition}"] if self._settings.partition else []
        others = self._names(*partition) - set(_call("scontrol", "show", "hostnames", exclude).split())
        needed = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if len(others) < needed:
            raise ClusterError(f"the run needs {needed} nodes, and Slurm has {len(others)} beside {exclude}")


class StepProcess:
    """A program on a node: a step of the job. Its srun runs here, and ends as it does."""

    def __init__(self, cluster: SlurmCluster, node: Node, command: Command) -> None:
        self._cluster, self._asked = cluster, False
        with (Path(node.folder) / "srun.log").open("ab") as errors:
            self._srun = subprocess.Popen(
                words.step_argv(cluster.job, node, command, cluster.step_extra),
                env=cluster.step_env | dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # or a Ctrl-C at the terminal would reach it
            )
        said = _first_line(self._srun, _START_S).split(" ", 2)
        if said[0] != "started":
            self._srun.kill()
            self._srun.wait()
            why = " ".join(said[1:]) or f"srun gave up, see {node.folder}/srun.log"
            raise ClusterError(f"cannot start {command.argv[0]} on {node.name}: {why}")
        self._pid, self._step = int(said[1]), said[2]

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._pid

    def poll(self) -> int | None:
        """See `Process`."""
        code = self._srun.poll()
        if code is None:
            return None
        if code != 0 and not self._asked:
            self._asked = True
            self._cluster.lost_step()
        return words.exit_status(code)

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._srun.wait(timeout_s)
        return self.poll()

    def terminate(self) -> None:
        """See `Process`. Not by a signal to srun, which would kill the program at once."""
        if self._srun.poll() is None and not self._cluster.leaving():  # a second one may break off what the first began
            self._signal("TERM")

    def kill(self) -> None:
        """See `Process`."""
        self._signal("KILL")
        try:
            self._srun.wait(_KILL_S)
        except subprocess.TimeoutExpired:  # its node is gone, and Slurm will see to that
            os.killpg(self._srun.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._srun.wait(_END_S)

    def _signal(self, name: str) -> None:
        if self._srun.poll() is None:
            self._asked = True
            with contextlib.suppress(ClusterError):  # it may end just now, which scancel takes for an error
                _call(*words.signal_argv(self._cluster.job, self._step, name))


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    """Return the first line that a process prints, as far as it is printed in time."""
    out: IO[bytes] | None = process.stdout
    assert out is not None
    line, deadline = b"", time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
            more = os.read(out.fileno(), 4096)
            if not more:
                break
            line += more
    out.close()
    return line.decode(errors="replace").split("\n")[0]


class SlurmCluster:
    """The nodes of one job, seen from inside it."""

    name = "slurm"
    lasting = False  # Slurm ends the steps of a batch job with its batch script
    shares_files = True

    def __init__(self, settings: words.Settings, job: str, project: Path, work: Path) -> None:
        """Make one of a running job's nodes, working folders below `work`; programs start in `project`."""
        self.job, self.step_extra = job, settings.step_extra
        self._project, self._work = project, work
        self._python = settings.python or sys.executable
        self._known: list[tuple[str, str]] = []
        self._leaving = False
        # What the job's environment says of memory and tasks would be taken for options of each step.
        dropped = ("SLURM_MEM_", "SLURM_NTASKS", "SLURM_TASKS", "SLURM_CPU_BIND", "FGLAUNCH_STARTER_PID")
        self.step_env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}

    def nodes(self, run: str, count: int) -> list[Node]:
        """See `Cluster`."""
        known = self._find_nodes()
        if count > len(known):
            raise ClusterError(
                f"job {self.job} has {len(known)} nodes, not {count};"
                " ask for more, or `unset SLURM_JOB_ID` to have a job of the run's own submitted"
            )
        folder = self._work / run
        return [Node(n, address, str(folder / n), self._python, str(self._project)) for n, address in known[:count]]

    def _find_nodes(self) -> list[tuple[str, str]]:
        if not self._known:
            names = _call("squeue", "--noheader", f"--jobs={self.job}", "--format=%N").strip()
            if not names:
                raise ClusterError(f"job {self.job} has no nodes (any more)")
            shown = _call("scontrol", "--oneliner", "show", "node", names)
            self._known = list(words.parse_nodes(shown).items())
        return self._known

    def rendezvous_node(self, run: str) -> None:
        """Return None: agents meet on one of the job's own nodes."""

    def hardware(self, nodes: Sequence[Node]) -> list[Hardware]:
        """Return the CPUs that Slurm gave on each node. It names the GPUs itself, to every step."""
        cpus = words.parse_cpus(os.environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
        own = dict(zip((name for name, _ in self._find_nodes()), cpus, strict=False))
        return [Hardware(own.get(node.name, 1), ()) for node in nodes]

    def silence_s(self, node: Node) -> float:
        """Return 0: a node that does not answer is Slurm's to notice, and ends the job or its steps."""
        return 0.0

    def claim(self, node: Node, owner: Owner) -> None:
        """See `Cluster`. Of another job's run, Slurm tells whether it is at work; of this job's, its supervisor."""
        try:
            take(node, owner, self._works, job=self.job)
        except OSError as error:
            raise _no_folder(Path(node.folder), error) from error

    def _works(self, found: Mapping[str, Any]) -> bool:
        job = str(found.get("job", ""))
        if job in ("", self.job):
            return signer_lives(found)
        state = SlurmQueue(words.Settings(), self._project, self._work).look(job)
        return state is not None and not state.waits

    def make_ready(self, node: Node) -> None:
        """See `Cluster`."""
        try:
            Path(node.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_folder(Path(node.folder), error) from error

    def free_port(self, node: Node) -> int:
        """See `Cluster`."""
        done = self._bind(node, 0)
        if done.returncode != 0:
            raise ClusterError(f"no port to listen on at {node.address} ({node.name}): {done.stderr[-200:]}")
        return int(done.stdout)

    def port_in_use(self, node: Node, port: int) -> bool:
        """See `Cluster`."""
        done = self._bind(node, port)
        if done.returncode != 0 and f"[Errno {_DENIED}]" in done.stderr:
            raise ClusterError(f"port {port}: this user may not listen there; use one above 1023")
        if done.returncode != 0 and f"[Errno {_IN_USE}]" not in done.stderr:
            raise ClusterError(f"{node.name} cannot be asked for its ports: {done.stderr[-200:]}")
        return done.returncode != 0

    def _bind(self, node: Node, port: int) -> subprocess.CompletedProcess[str]:
        """Listen on a port of a node for a moment, there."""
        argv = words.ask_argv(self.job, node, node.python, "-c", words.LISTENS, node.address, str(port))
        if node.name == os.environ.get("SLURMD_NODENAME") or node.address in ("127.0.0.1", socket.gethostname()):
            argv = (sys.executable, "-c", words.LISTENS, node.address, str(port))
        return subprocess.run(
            argv, env=self.step_env, capture_output=True, text=True, timeout=_CALL_S, check=False, cwd="/"
        )

    def start(self, node: Node, command: Command) -> StepProcess:
        """See `Cluster`. Nothing is started on nodes that are being taken away: it would not hear of that."""
        if self._leaving:
            raise ClusterError(f"cannot start {command.argv[0]}: Slurm takes the nodes of job {self.job} away")
        return StepProcess(self, node, command)

    def find(self, node: Node, name: str) -> None:
        """See `Cluster`."""

    def size(self, node: Node, name: str) -> int:
        """See `Cluster`."""
        return _machine.file_size(str(Path(node.folder) / name))

    def read(self, node: Node, name: str, offset: int) -> bytes:
        """See `Cluster`."""
        return _machine.read_file(str(Path(node.folder) / name), offset)

    def leaving(self) -> bool:
        """Tell whether Slurm takes the nodes away; then it has sent SIGTERM to all steps itself."""
        if not self._leaving:
            with contextlib.suppress(ClusterError):
                state = SlurmQueue(words.Settings(), self._project, self._work).look(self.job)
                self._leaving = state is None or state.leaving or state.text.startswith("COMPLETING")
        return self._leaving

    def lost_step(self) -> None:
        """Look why a step ended that nobody here had asked to.

        When Slurm takes nodes for another job it grants a time of grace, but tells the steps only. Whoever listens to
        SIGUSR1 here is told too, as before the end of the job's time.
        """
        queue = SlurmQueue(words.Settings(), self._project, self._work)
        if self.job != queue.own or not callable(signal.getsignal(signal.SIGUSR1)):
            return
        with contextlib.suppress(ClusterError):
            state = queue.look(self.job)
            if state and state.leaving and not (state.waits or state.called_off):
                self._leaving = True
                os.kill(os.getpid(), signal.SIGUSR1)


def open_cluster(settings: Mapping[str, Any], project: Path, work: Path) -> SlurmCluster:
    """See `cluster.open_cluster`. Outside of a job it has no nodes."""
    found = words.read_settings(settings)
    return SlurmCluster(found, os.environ.get("SLURM_JOB_ID", "0"), project, Path(found.work) if found.work else work)


def open_queue(settings: Mapping[str, Any], project: Path, work: Path) -> SlurmQueue:
    """See `cluster.open_queue`."""
    return SlurmQueue(words.read_settings(settings), project, work)
