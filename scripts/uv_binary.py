"""Find uv, or fetch it: through pip where there is one, else with the standard library alone."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import platform
import re
import shutil
import ssl
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steps import InstallError, output_of, say, succeeds

PIP_DEFAULT_INDEX = "https://pypi.org/simple"  # pip's documented default, for when nothing else is configured
UV_OLDEST = (0, 8)  # the first series where --torch-backend and --group are both settled
TIMEOUT_S = 60.0


def pinned_uv(constraints: str) -> str:
    """The uv version in constraints.txt."""
    found = re.search(r"^uv==([\w.]+)", constraints, re.M)
    if not found:
        raise InstallError("constraints.txt pins no uv; run scripts/lock")
    return found[1]


def parse_version(text: str) -> tuple[int, ...]:
    """Numbers out of `uv 0.8.3 (...)`; empty where there are none."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


class _Links(html.parser.HTMLParser):
    """Collects the links of a simple-API page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what `<a href=...>` points to."""
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def parse_index_page(page: str) -> list[tuple[str, str]]:
    """(link, sha256 or "") of every file on a project's page, in its JSON or its HTML form (PEP 691, 503)."""
    if page.lstrip().startswith("{"):
        return [(file["url"], file["hashes"].get("sha256", "")) for file in json.loads(page)["files"]]
    parser = _Links()
    parser.feed(page)
    pairs = [urllib.parse.urldefrag(link) for link in parser.links]
    return [(url, mark.removeprefix("sha256=") if mark.startswith("sha256=") else "") for url, mark in pairs]


def platform_fits(filename: str, machine: str, libc: str) -> bool:
    """Whether a wheel's name fits this machine; `libc` is manylinux, musllinux or macosx."""
    tags = filename.removesuffix(".whl").rpartition("-")[2].split(".")
    return any(tag.startswith(libc) and tag.endswith("_" + machine) for tag in tags)


def pick_wheel(files: Iterable[tuple[str, str]], version: str, machine: str, libc: str) -> tuple[str, str] | None:
    """The (link, sha256) of uv's wheel for this machine; of several the one for the oldest systems."""
    prefix = f"uv-{version}-"
    named = [(urllib.parse.unquote(link.rpartition("/")[2]), link, sha256) for link, sha256 in files]
    fits = [
        each for each in named
        if each[0].startswith(prefix) and each[0].endswith(".whl") and platform_fits(each[0], machine, libc)
    ]  # fmt: skip
    return min(fits)[1:] if fits else None


def index_urls(env: Mapping[str, str]) -> list[str]:
    """Every configured package index, the main one first."""
    main = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or PIP_DEFAULT_INDEX
    extra = f"{env.get('UV_INDEX', '')} {env.get('UV_EXTRA_INDEX_URL', '')}".split()
    return [re.sub(r"^[\w-]+=", "", url).rstrip("/") for url in [main, *extra]]


def authorized(url: str) -> tuple[str, dict[str, str]]:
    """Split `https://user:password@host/` into what urllib understands: the bare URL and a header."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {token}"}


def fetch(url: str, env: Mapping[str, str], accept: str = "*/*") -> bytes:
    """The bytes at `url`, through the proxies of the environment and its certificate bundle."""
    bare, headers = authorized(url)
    if bare.startswith("file:") and bare.endswith("/"):
        bare += "index.html"  # what a web server would add, and what pip adds, for an index laid out in a folder
    request = urllib.request.Request(bare, headers={"Accept": accept, **headers})
    tls = ssl.create_default_context(cafile=env.get("SSL_CERT_FILE") or None)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=tls) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, ValueError) as error:
        raise InstallError(f"cannot read {bare}: {error}") from error


def find_uv_wheel(version: str, env: Mapping[str, str]) -> tuple[str, str]:
    """The first configured index's (link, sha256) for uv on this machine."""
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    libc = "macosx" if sys.platform == "darwin" else "manylinux" if platform.libc_ver()[0] else "musllinux"
    problem = "no package index has it for this machine"
    for index in index_urls(env):
        page_url = f"{index}/uv/"
        try:
            page = fetch(page_url, env, accept).decode("utf-8", "replace")
        except InstallError as error:
            problem = str(error)
            continue
        if found := pick_wheel(parse_index_page(page), version, platform.machine(), libc):
            return urllib.parse.urljoin(page_url, found[0]), found[1]
    raise InstallError(f"cannot get uv {version}: {problem}; install uv by hand")


def unpack_uv(wheel: bytes, sha256: str, target: Path) -> None:
    """Put the binary of uv's wheel at `target`, once its bytes are those the index vouches for."""
    if hashlib.sha256(wheel).hexdigest() != sha256:
        raise InstallError("the downloaded uv is not what the package index says it is (sha256 differs)")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.read(name))
    target.chmod(0o755)


def uv_works(uv: str, env: Mapping[str, str]) -> bool:
    """Whether `uv` runs and is new enough (a version manager's shim may exist and yet only complain)."""
    return parse_version(output_of([uv, "--version"], env)) >= UV_OLDEST


def pip_commands(env: Mapping[str, str], venv: Path) -> list[list[str]]:
    """Every way to call pip here, that work or not: this Python's, the venv's, the one on PATH."""
    found = shutil.which("pip3", path=env.get("PATH"))
    pythons = [[sys.executable, "-m", "pip"], [str(venv / "bin" / "python"), "-m", "pip"]]
    return pythons + ([[found]] if found else [])


def pip_brings_uv(pip: Sequence[str], target: Path, env: Mapping[str, str], constraints: Path) -> bool:
    """Let pip unpack uv beside the environment; --target touches nothing that the system manages."""
    folder = str(target.parent.parent)
    command = [
        *pip,
        "install",
        "--quiet",
        "--no-deps",
        "--upgrade",
        "--target",
        folder,
        "-c",
        str(constraints),
        "uv",
    ]
    return succeeds(command, env) and uv_works(str(target), env)


def get_uv(venv: Path, env: Mapping[str, str], constraints: Path) -> str:
    """A uv that works: the user's, the one fetched earlier, pip's, or the index's with no pip at all."""
    target = venv / "uv" / "bin" / "uv"
    for uv in (shutil.which("uv", path=env.get("PATH")), str(target)):
        if uv and uv_works(uv, env):
            return uv
    say("uv is not here; fetching it into .venv")
    if any(pip_brings_uv(pip, target, env, constraints) for pip in pip_commands(env, venv)):
        return str(target)
    link, sha256 = find_uv_wheel(pinned_uv(constraints.read_text("utf-8")), env)
    unpack_uv(fetch(link, env), sha256, target)
    return str(target)
