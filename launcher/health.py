"""What can be wrong with a machine before a run, as rows: ok, warn (training may suffer) or bad (it cannot work)."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fgtrain.errors import FglaunchError
from fgtrain.stores import open_store
from launcher import hardware

if sys.platform != "win32":
    import resource

GIB = 1 << 30
_CHILD_TIMEOUT_S = 180.0
_SKEW_S = 60.0


class Row(NamedTuple):
    """One thing that was looked at: what was found, and how to mend it (empty if all is well)."""

    name: str
    state: Literal["ok", "warn", "bad"]
    found: str
    fix: str = ""


def examine(store_url: str | None, work: Path) -> Iterator[Row]:
    """Look at everything; `store_url` None: no store to try."""
    yield python_row(sys.version_info[:3])
    yield from extra_rows(metadata.requires("fglaunch") or [], _version)
    yield from torch_rows(_ask_torch(), hardware.cuda_devices())
    yield cores_row(hardware.cpu_count())
    yield memory_row(_memory())
    yield disk_row(work)
    if Path("/dev/shm").is_dir():
        yield shared_memory_row(shutil.disk_usage("/dev/shm").total)
    if sys.platform != "win32":
        yield files_row(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield clock_row(time.time(), Path(__file__).stat().st_mtime)
    if store_url is not None:
        yield from store_rows(store_url)


def python_row(version: Sequence[int]) -> Row:
    """Judge the interpreter."""
    found = f"{'.'.join(map(str, version))} ({platform.platform()})"
    if tuple(version) < (3, 11, 4):
        return Row("python", "bad", found, "install Python 3.11.4 or later")
    return Row("python", "ok", found)


def extra_rows(requirements: Sequence[str], version: Any) -> Iterator[Row]:
    """Judge each extra by the requirements of our own package; `version` maps a package to its version or None."""
    extras: dict[str, list[str]] = {}
    for line in requirements:
        if match := re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line):
            extras.setdefault(match[2], []).append(match[1])
    for extra, packages in extras.items():
        versions = {p: version(p) for p in packages}
        missing = [p for p, v in versions.items() if v is None]
        found = ", ".join(f"{p} {v}" for p, v in versions.items() if v is not None)
        if missing:
            found = f"not installed: {', '.join(missing)}" + (f"; installed: {found}" if found else "")
            yield Row(f"extra {extra}", "warn", found, f"pip install 'fglaunch[{extra}]'")
        else:
            yield Row(f"extra {extra}", "ok", found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ask_torch() -> dict[str, Any] | str | None:
    """Return what torch finds, why it does not, or None if it is not installed."""
    if _version("torch") is None:
        return None
    argv = [sys.executable, "-m", "fgtrain.doctor"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"import torch takes longer than {_CHILD_TIMEOUT_S:g} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def torch_rows(found: dict[str, Any] | str | None, devices: Sequence[str]) -> Iterator[Row]:
    """Judge what `fgtrain.doctor` printed; `devices` are the GPUs that the launching side counts."""
    if found is None:
        yield Row("torch", "warn", "not installed: this machine can launch, not train", "pip install 'fglaunch[train]'")
        return
    if isinstance(found, str):
        yield Row("torch", "bad", found, "install torch anew: pip install --force-reinstall 'fglaunch[train]'")
        return
    yield Row("torch", "ok", f"{found['torch']}, " + (f"CUDA {found['cuda']}" if found["cuda"] else "CPU only"))
    yield _gpu_row(found, devices)
    backends = [b for b in ("gloo" if found["gloo"] else "", f"NCCL {found['nccl']}" if found["nccl"] else "") if b]
    if found["gloo"]:
        yield Row("collectives", "ok", ", ".join(backends))
    else:
        yield Row("collectives", "bad", ", ".join(backends) or "none", "install a torch with distributed and gloo")
    for name, result in found["imports"].items():
        if result["error"]:
            yield Row(name, "bad", result["error"], f"install a {name} that fits torch {found['torch']}")
        else:
            yield Row(name, "ok", f"{result['version']} imports")


def _gpu_row(found: dict[str, Any], devices: Sequence[str]) -> Row:
    gpus = ", ".join(f"{g['name']} {g['bytes'] / GIB:.0f} GiB" for g in found["gpus"])
    if len(found["gpus"]) == len(devices):
        return Row("gpus", "ok", gpus or "none: --gpus means CPU processes")
    fix = "install a torch that fits the driver, and look at CUDA_VISIBLE_DEVICES and nvidia-smi"
    return Row("gpus", "bad", f"this machine has {len(devices)}, torch sees {len(found['gpus'])} {gpus}".strip(), fix)


def cores_row(count: int) -> Row:
    """Judge the cores that this process may use."""
    fix = "loading pictures will be slow: use a machine with more cores, or --set loader.workers=0"
    return Row("cores", "ok" if count > 1 else "warn", str(count), "" if count > 1 else fix)


def _memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).exists() else "max"
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def memory_row(bytes_: int) -> Row:
    """Judge the memory."""
    return _amount("memory", bytes_, "", 1 * GIB, 4 * GIB, "use a machine with more memory, or a smaller batch.micro")


def disk_row(work: Path) -> Row:
    """Judge the disk that the working folder is on, and whether it can be written."""
    place = next(p for p in (work, *work.parents) if p.exists())
    fix = "set FGLAUNCH_WORK to a folder with room that you may write"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Row("work folder", "bad", f"{work} cannot be written", fix)
    return _amount("work folder", shutil.disk_usage(place).free, f" free for {work}", GIB // 2, 5 * GIB, fix)


def shared_memory_row(bytes_: int) -> Row:
    """Judge /dev/shm, which loader processes pass pictures through."""
    fix = "make it larger (docker run --shm-size=8g), or --set loader.workers=0"
    return _amount("/dev/shm", bytes_, "", 0, GIB, fix)


def _amount(name: str, bytes_: int, what: str, bad: int, warn: int, fix: str) -> Row:
    """Judge bytes by two thresholds: below `bad` nothing works, below `warn` some things do not."""
    found = f"{bytes_ / GIB:.1f} GiB{what}"
    if bytes_ >= warn:
        return Row(name, "ok", found)
    return Row(name, "bad" if bytes_ < bad else "warn", found, fix)


def files_row(limit: int) -> Row:
    """Judge how many files a process may have open."""
    if limit >= 1024 or limit < 0:  # RLIM_INFINITY is -1
        return Row("open files", "ok", str(limit) if limit >= 0 else "unlimited")
    return Row("open files", "bad" if limit < 256 else "warn", str(limit), "ulimit -n 4096")


def clock_row(now: float, installed: float) -> Row:
    """Judge the clock: it cannot be earlier than the installation (both in Unix seconds)."""
    found = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < installed - _SKEW_S:
        return Row("clock", "bad", f"{found}, earlier than this installation", "set the clock (NTP)")
    return Row("clock", "ok", found)


def store_rows(url: str) -> Iterator[Row]:
    """Use a store: write, create twice, list, read and delete, and compare its clock with this machine's."""
    try:
        store = open_store(url)
        abilities = store.check()
        key = f"probe/{uuid.uuid4().hex}"
        store.put(key, b"clock")
        skew = store.head(key).modified - time.time()
        store.delete(key)
    except FglaunchError as error:
        yield Row("store", "bad", str(error), "name another store with --store URL, or mend this one")
        return
    if abilities.conditional_create:
        yield Row("store", "ok", f"{store.url}: writable, conditional create")
    else:
        fix = "never run two supervisors of one run on it"
        yield Row("store", "warn", f"{store.url}: writable, ignores conditional create", fix)
    ok = abs(skew) < _SKEW_S
    found = f"{skew:+.0f} s from this machine's"
    yield Row("store's clock", "ok" if ok else "warn", found, "" if ok else "set this machine's clock (NTP)")
