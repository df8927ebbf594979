"""Look at this node before it is used, and leave what was found in FOLDER/check.json.

    python -m fgtrain.check FOLDER
    python -m fgtrain.check FOLDER --full --key KEY --endpoint HOST:PORT --address ADDRESS --rank R --size N

Always: the clock, room on the disk and in /dev/shm, device files. With --full also a matrix product on each device,
compared with the one that integers give, and the speed of TCP to other nodes, each of which runs this program too.
It only finds out; the launching side judges.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fgtrain.listener import listen

FILE = "check.json"
_SIDE = 512
_BYTES = 16 << 20  # sent over each link
_TIMEOUT_S = 20.0


def main() -> None:
    """Look, and write what was found."""
    parser = argparse.ArgumentParser(prog="fgtrain.check")
    parser.add_argument("folder", type=Path, help="the node's working folder")
    parser.add_argument("--full", action="store_true", help="compute and measure, too")
    parser.add_argument("--key", default="", help="what this round of checks is called")
    parser.add_argument("--endpoint", default="", help="HOST:PORT of the rendezvous store")
    parser.add_argument("--address", default="127.0.0.1", help="where other nodes reach this one")
    parser.add_argument("--rank", type=int, default=0, help="this node's number")
    parser.add_argument("--size", type=int, default=1, help="how many nodes are checked together")
    args = parser.parse_args()
    found: dict[str, Any] = look(args.folder) | {"key": args.key}
    if args.full:
        found["devices"] = devices()
        if args.size > 1:
            found["links"] = links(args.endpoint, args.key, args.address, args.rank, args.size)
    part = args.folder / (FILE + ".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(args.folder / FILE)


def look(folder: Path) -> dict[str, Any]:
    """Return the clock (Unix seconds), free bytes (None: no /dev/shm here) and the number of device files."""
    shm = Path("/dev/shm")
    probe = folder / "check.probe"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
        writable = True
    except OSError:
        writable = False
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "writable": writable,
        "disk_free": shutil.disk_usage(folder).free,
        "shm_free": shutil.disk_usage(shm).free if shm.is_dir() else None,
        "device_files": sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in Path("/dev").glob("nvidia*")),
    }


def devices() -> list[dict[str, Any]]:
    """Return each CUDA device that this process sees, with what is wrong with it; the CPU if there is none."""
    import torch

    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [{"name": name, "error": device_error(name)} for name in names]


def device_error(name: str) -> str | None:
    """Compute a product of small integers, which floating point gives exactly, on a device; return what is wrong."""
    import torch

    i = torch.arange(_SIDE)
    a, b = (i[:, None] * 7 + i * 3) % 5 - 2, (i[:, None] * 5 + i * 11) % 7 - 3
    try:
        device = torch.device(name)
        product = (a.float().to(device) @ b.float().to(device)).cpu()
    except Exception as error:  # whatever a broken driver raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    wrong = int((product != (a @ b).float()).sum())
    return f"{wrong} of {product.numel()} values of a matrix product are wrong" if wrong else None


def links(endpoint: str, key: str, address: str, rank: int, size: int) -> dict[str, float | str]:
    """Return MB/s received from other nodes by their number, or what went wrong.

    Each node hears the one before it, the second before it, the fourth, and so on: every node is heard.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host, _, port = endpoint.rpartition(":")
    store = PrefixStore(f"check/{key}", TCPStore(host, int(port), is_master=False, wait_for_workers=False))
    with listen() as server:
        server.settimeout(_TIMEOUT_S)
        store.set(f"{rank}", f"{address}:{server.getsockname()[1]}")
        serving = threading.Thread(target=_serve, args=(server, len(list(_shifts(size)))), daemon=True)
        serving.start()
        found: dict[str, float | str] = {}
        for shift in _shifts(size):
            peer = (rank - shift) % size
            found[str(peer)] = _attempt(partial(_receive, partial(store.get, f"{peer}")))
        serving.join(_TIMEOUT_S)
    return found


def _shifts(size: int) -> Iterator[int]:
    shift = 1
    while shift < size:
        yield shift
        shift *= 2


def _attempt(measure: Callable[[], float]) -> float | str:
    try:
        return round(measure(), 1)
    except Exception as error:  # the store's and the network's
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _serve(server: socket.socket, peers: int) -> None:
    """Send to each that connects, one at a time."""
    data = memoryview(bytes(1 << 20))
    for _ in range(peers):
        try:
            with server.accept()[0] as peer:
                peer.settimeout(_TIMEOUT_S)
                for _ in range(_BYTES // len(data)):
                    peer.sendall(data)
        except OSError:  # it will say so itself
            return


def _receive(address: Callable[[], bytes]) -> float:
    """Return the speed of what another node sends, in MB/s."""
    host, _, port = address().decode().rpartition(":")
    with socket.create_connection((host, int(port)), _TIMEOUT_S) as peer:
        buffer, got, started = bytearray(1 << 20), 0, time.perf_counter()
        while got < _BYTES:
            n = peer.recv_into(buffer)
            if not n:
                raise ConnectionError("the link broke")
            got += n
        return got / 1e6 / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
