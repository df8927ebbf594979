"""Command lines: what each node runs. Pure; `--dry-run` prints exactly this."""

from __future__ import annotations

from collections.abc import Sequence

from fgtrain import deepspeed_launch
from fgtrain.plan import DETECT_S, World
from fgtrain.recipe import Recipe

_FOREVER = 1_000_000  # whether to go on is the supervisor's decision
_GRACE_S = 120  # for a step and the commit of a last snapshot, when nodes join or the agent is asked to stop


def rendezvous_argv(python: str, port: int | str) -> tuple[str, ...]:
    """Return the command line of the store that the agents meet in."""
    return (python, "-m", "fgtrain.rendezvous", "--port", str(port))


def agent_argv(
    python: str, *, world: World, run: str, store: str, folder: str, address: str, endpoint: str
) -> tuple[str, ...]:
    """Return the command line of one node's agent (torchrun with a lifeline), and of what it starts.

    `address` is the node's own, `endpoint` host:port of the rendezvous store.
    """
    return (
        *(python, "-m", "fgtrain.agent"),
        f"--nnodes={world.span}",
        f"--nproc-per-node={world.gpus if world.engine == 'torchrun' else 1}",
        f"--rdzv-id={run}",
        "--rdzv-backend=fglaunch",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-conf=detect={world.detect_s:g}",
        f"--local-addr={address}",
        f"--max-restarts={_FOREVER}",
        f"--shutdown-timeout={_GRACE_S}",
        "--monitor-interval=0.05",
        *_started(world),
        *(store, run, folder),
    )


def _started(world: World) -> tuple[str, ...]:
    """Return what an agent starts as often as `--nproc-per-node` says."""
    match world.engine:
        case "torchrun":
            return "-m", "fgtrain.worker"
        case "deepspeed":
            return "-m", "fgtrain.deepspeed_launch", f"--slots={world.gpus}"


def deepspeed_argv(
    python: str, *, run: str, store: str, folder: str, rank: int, endpoint: str, devices: str | None
) -> tuple[str, ...]:
    """Return the command line of DeepSpeed's launcher on one node, as `fgtrain.deepspeed_launch` will have it."""
    address, _, port = endpoint.rpartition(":")
    return deepspeed_launch.launcher_argv(
        python,
        folder=folder,
        rank=rank,
        address=address,
        port=port,
        devices=devices,
        worker=(store, run, folder),
    )


def endpoint_argv(python: str, *, folder: str, endpoint: str, lost: Sequence[str]) -> tuple[str, ...]:
    """Return the command line that tells a node's agent where agents meet now, and on which nodes there is none."""
    return (python, "-m", "fgtrain.endpoint", folder, endpoint, *lost)


def forget_argv(python: str, *, run: str, folder: str, identity: str) -> tuple[str, ...]:
    """Return the command line that frees the host memory that a run's snapshots hold on a node."""
    return (python, "-m", "fgtrain.snapshot.memory", run, folder, identity)


def preloaded(recipe: Recipe, store_url: str) -> tuple[str, ...]:
    """Return the modules that the workers of a run will need, for the warm process to import."""
    scheme = store_url.partition("://")[0] if "://" in store_url else "file"
    parts = (type(part).__module__ for part in (recipe.model, recipe.data, recipe.strategy))
    return ("fgtrain.train", "fgtrain.tensorboard", f"fgtrain.stores.{scheme}", *dict.fromkeys(parts))


def check_argv(python: str, folder: str, *, full: bool, key: str, endpoint: str, address: str) -> tuple[str, ...]:
    """Return the command line that looks at a node before it is used."""
    more = ("--full", "--endpoint", endpoint, "--address", address) if full else ()
    return (python, "-m", "fgtrain.check", folder, "--key", key, *more)


def unhang_argv(python: str, *, folder: str, kill: Sequence[int]) -> tuple[str, ...]:
    """Return the command line that has a node's ranks write their stacks, and kills those of some local ranks."""
    return (python, "-m", "fgtrain.unhang", folder, *(word for slot in kill for word in ("--kill", str(slot))))


def agent_env(
    *,
    threads: int,
    address: str,
    devices: str | None,
    bits: bool,
    detect_s: float = DETECT_S,
    preload: Sequence[str] = (),
) -> dict[str, str]:
    """Return what is added to an agent's environment.

    Args:
        threads: CPU threads a process may use.
        address: where other nodes reach this one.
        devices: CUDA_VISIBLE_DEVICES, or None to leave it alone.
        bits: whether the recipe asks for determinism="bits".
        detect_s: after how many seconds a worker that is stopped counts as lost.
        preload: modules for the warm process to import; none: workers are started from scratch.
    """
    env = {
        "FGLAUNCH_ADDRESS": address,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "FGLAUNCH_DETECT_S": f"{detect_s:g}",
    }
    if preload:
        env["FGLAUNCH_PRELOAD"] = ",".join(preload)
    if bits:
        # cuBLAS picks its workspace, and with it the order of its sums, when it is loaded. Source: NVIDIA cuBLAS
        # documentation, "Results Reproducibility".
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return env if devices is None else env | {"CUDA_VISIBLE_DEVICES": devices}
