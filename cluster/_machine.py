"""What the machine at hand has. Standard library, and Python 3.8 will do: it is also sent to nodes over SSH."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

_SIOCGIFADDR = 0x8915  # Source: netdevice(7), linux/sockios.h


def cuda_devices() -> list[str]:
    """Return the GPUs that processes here may use, as CUDA_VISIBLE_DEVICES would name them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d.strip() not in ("", "-1")]
    count = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in Path("/dev").glob("nvidia*"))
    return [str(i) for i in range(count)]


def cpu_count() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_size(path: str) -> int:
    """Return how many bytes a file has; 0 if it is not there (yet)."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def read_file(path: str, offset: int) -> bytes:
    """Return a file from `offset` on; empty if it is not there (yet)."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def free_bytes(folder: str) -> int:
    """Return what is free on the disk that a folder is on, or would be on; 0 if that cannot be told."""
    place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(str(place)).free
    except OSError:
        return 0


def free_port(address: str) -> int:
    """Return a TCP port of an address of this machine that nothing listens on."""
    with socket.socket(_family(address)) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def port_in_use(address: str, port: int) -> bool:
    """Tell whether something listens on a port.

    Raises:
        PermissionError: this user may not listen there.
    """
    with socket.socket(_family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise
            return True
        return False


def interface_addresses() -> dict[str, list[str]]:
    """Return the IP addresses of each network interface, by its name (Linux; elsewhere none)."""
    if sys.platform != "linux":
        return {}
    import fcntl

    found: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # no IPv4 address
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.setdefault(name, []).append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def interface_of(address: str, interfaces: Mapping[str, list[str]]) -> str | None:
    """Return the interface that has an IP address; None where none has, as behind a NAT."""
    return next((name for name, addresses in interfaces.items() if address in addresses), None)


def _family(address: str) -> socket.AddressFamily:
    """Return IPv4, unless an address, or what a name stands for, is IPv6 only."""
    kinds = {found[0] for found in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
    return socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6
