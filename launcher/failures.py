"""What went wrong, by class. Pure: from exit codes, exception texts and what the watchdog saw.

Class       What it is                                              Tried again
preemption  the machine is being taken, with notice                 at once
lost        a process or node is gone and left no word              at once, then later and later
hang        ranks stopped moving                                    the hanging rank is killed
oom         memory ran out, a device's or the host's                twice
fitted      it did, and the micro-batch is smaller from now on      at once
user        only the user can mend it                               never
hardware    a device or link is broken                              on another node
capacity    something is full, or there are not enough nodes        patiently
error       any other exception                                     unless it is the same at the same step
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from fgtrain.notice import LEAVES
from fgtrain.runstore import Failure
from fgtrain.shortages import says_any

Kind = Literal["user", "hardware", "oom", "capacity", "fitted", "hang", "error", "preemption", "lost"]
KINDS: tuple[Kind, ...] = ("user", "hardware", "oom", "capacity", "fitted", "hang", "error", "preemption", "lost")
"""Most telling first: of several signs of one incident, the first of these is taken for its cause."""

EXIT_NOTICED = 75  # EX_TEMPFAIL: a worker that left after a notice, its snapshot committed (see fgtrain.worker)
EXIT_USER = 2
EXIT_NO_STORE = 76  # an agent's (see fgtrain.meeting)
_OOM_KILLED = 137  # 128 + SIGKILL: what shells and container engines say of a process that ran out of memory
_WORDS = {
    EXIT_NOTICED: "it left when asked to",
    EXIT_NO_STORE: "the store that agents meet in was gone",
    _OOM_KILLED: "killed, probably for want of memory",
}

# Source: NVIDIA "XID Errors", CUDA runtime API error strings, PyTorch's c10 exception texts.
_HARDWARE = (
    r"\bXid\b|uncorrectable ECC|\bECC error|device-side hardware|GPU has fallen off the bus|hardware stack error"
    r"|unspecified launch failure|NVLink error|system not yet initialized|no CUDA-capable device"
    r"|CUDA driver initialization failed|nvidia-smi has failed|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|cudaErrorHardwareStackError|cudaErrorECCUncorrectable"
)
_CAPACITY = r"No space left on device|\[Errno 28\]|the disk is full|Disk quota exceeded"


_TOLD: Mapping[str, Kind] = {
    "user": "user",
    "fitted": "fitted",
    "oom": "oom",
    "peer": "lost",  # NCCL and gloo say so of a broken link and of a dead peer alike
}
"""What a worker's own word for its failure comes to; the text tells of others."""


class Sign(NamedTuple):
    """One thing that went wrong somewhere. `time` in Unix seconds; attempt 0: before one began; step: where, if known.

    `peer`: it only tells that others are gone, or `asked` to leave as this one was.
    """

    kind: Kind
    message: str
    time: float = 0.0
    attempt: int = 0
    node: str = ""
    rank: int | None = None
    step: int | None = None
    traceback: str = ""
    peer: bool = False
    asked: bool = False


def classify_text(text: str) -> Kind:
    """Return the class of an exception by its text."""
    if re.search(_HARDWARE, text):
        return "hardware"
    if says_any(text):
        return "oom"
    return "capacity" if re.search(_CAPACITY, text) else "error"


def classify_exit(code: int) -> Kind:
    """Return the class of a worker's exit status (negative: a signal), where nothing else is known."""
    if code == EXIT_NOTICED or code == -signal.SIGTERM or code == 128 + signal.SIGTERM:
        return "preemption"
    if code == _OOM_KILLED:
        return "oom"
    if code == EXIT_USER:
        return "user"
    if code == -signal.SIGBUS:  # /dev/shm or a mapped file has no room for a page
        return "capacity"
    return "lost" if code < 0 or code > 128 else "error"


def sign_of(failure: Failure) -> Sign:
    """Return what a worker's own report comes to."""
    return Sign(
        _TOLD.get(failure.kind) or classify_text(failure.message),
        failure.message,
        failure.time,
        failure.attempt,
        rank=failure.rank,
        step=failure.step,
        traceback="" if failure.kind in ("user", "outage") else failure.traceback,
        peer=failure.kind == "peer",
    )


def sign_of_end(node: str, code: int | None, time: float, tail: str) -> Sign:
    """Return what an agent's exit status comes to; `tail`: the end of its log."""
    if code == EXIT_NOTICED:
        return Sign("preemption", spell_departure(node), time, node=node)
    return Sign("lost", f"the agent of {node} died ({spell_exit(code)})", time, node=node, traceback=tail)


def worker_exit(node: str, time: float, line: str, *, ranks: bool = True) -> Sign | None:
    """Return what a line of an agent's log says of a worker's exit; None if it says nothing of the kind.

    A worker that reported its exception ended with 1 or 2: its own words are better, so those codes only count where
    there are none. `ranks`: whether the agent started the workers itself; else it knows only that one of them ended.
    """
    # Source: torch.distributed.elastic.multiprocessing.api, SubprocessContext._poll and MultiprocessContext._poll
    found = re.search(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)", line)
    if not found:
        return None
    code = int(found[1])
    wordless = code not in (1, EXIT_USER)
    kind = classify_exit(code) if wordless else "lost"
    which = f" (local rank {found[2]})" if ranks else ""
    message = f"a worker of {node}{which} {_spell_end(code)}"
    asked = code == EXIT_NOTICED
    return Sign(kind, message, time, node=node, peer=not wordless or asked, asked=asked)


def agents_word(node: str, time: float, line: str) -> Sign | None:
    """Return what an agent says in its log of a node that is gone, its own or another; None if it says nothing."""
    if found := re.search(r" agent \d+: (?:round \d+ is over: )?((\S+?)(?:, \S+)* silent for [\d.]+ s)$", line):
        return Sign("lost", found[1], time, node=found[2])
    if LEAVES in line:
        return Sign("preemption", spell_departure(node), time, node=node)
    return None


def tells_of_a_join(line: str) -> bool:
    """Tell whether a line of an agent's log says that workers were asked to leave for nodes that join."""
    return re.search(r" agent \d+: round \d+: .* after nodes join$", line) is not None


def tells_of_a_round(line: str) -> bool:
    """Tell whether a line of an agent's log says that it has met the others."""
    return re.search(r" agent \d+: round \d+: node rank ", line) is not None


def tells_of_no_store(line: str) -> bool:
    """Tell whether a line of an agent's log says that it does not reach the store that agents meet in."""
    words = r"cut off: no answer from the store|the store that agents meet in is gone|no store to meet in"
    return re.search(rf" agent \d+: ({words})", line) is not None


def spell_departure(node: str) -> str:
    """Say that a node was told to leave, and does."""
    return f"{node} left after a notice"


def cause(signs: Iterable[Sign]) -> Sign:
    """Return the sign that explains the others: no lost peer if there is another, the most telling, the earliest."""
    return min(signs, key=lambda s: (s.peer, KINDS.index(s.kind), s.time))


def signature(sign: Sign, begins: Mapping[int, int]) -> tuple[str, int | None, int | None] | None:
    """Return what makes an exception the same as another: its text, and the step (or, before any, the rank).

    Args:
        sign: an exception.
        begins: the step that each attempt began at, for exceptions outside of steps.

    Returns:
        None for what is no exception of the program.
    """
    if sign.kind != "error" or sign.peer or not sign.traceback:
        return None
    text = re.sub(r"0x[0-9a-fA-F]+", "0x", sign.message)
    step = sign.step if sign.step is not None else begins.get(sign.attempt)
    return text, step, sign.rank if sign.attempt == 0 else None


def _spell_end(code: int) -> str:
    if code == EXIT_NOTICED:  # as all others, whoever was asked: no failure of its own
        return "left when asked to, its snapshot committed"
    return f"ended with {spell_exit(code)}"


def spell_exit(code: int | None) -> str:
    """Name an exit status."""
    if code in _WORDS:
        return f"exit code {code}: {_WORDS[code]}"
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


class Poison:
    """Remembers exceptions: the same one at the same step in two incidents is no accident."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int | None, int | None]] = set()

    def repeated(self, signs: Sequence[Sign], begins: Mapping[int, int]) -> Sign | None:
        """Take in an incident's signs; returns the first exception that an earlier incident had as well."""
        ordered = sorted(signs, key=lambda s: s.time)
        marks = [(mark, sign) for sign in ordered if (mark := signature(sign, begins))]
        known = next((sign for mark, sign in marks if mark in self._seen), None)
        self._seen |= {mark for mark, _ in marks}
        return known
