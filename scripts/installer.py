"""Install fglaunch, editable, into `.venv` beside the project.

uv does the work, with the versions of `constraints.txt`. Packages come from where pip's settings say, which
uv does not read by itself. A stamp in `.venv` makes a second call with nothing changed free.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from steps import ROOT, InstallError, output_of, run, say, succeeds
from uv_binary import get_uv, pip_commands

# pip's option -> uv's variable of the same meaning, then other names that show the user has set it already.
PIP_TO_UV = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "cert": ("SSL_CERT_FILE",),
}
APART = frozenset({"sky"})  # extras for environments of their own: see scripts/install_sky
SOURCES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)


# -- What is asked for, and what is there already --------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """What `.venv` holds: written last, so an interrupted install is not taken for a finished one."""

    place: str  # where and for which torch the environment was made; another one means making it anew
    inputs: str  # digest of the files that decide which versions go in
    extras: tuple[str, ...]
    groups: tuple[str, ...]
    torch_backend: str | None = None

    def covers(self, wanted: Stamp) -> bool:
        """Whether an environment with this stamp has all that `wanted` asks for."""
        return (
            (self.place, self.inputs) == (wanted.place, wanted.inputs)
            and set(self.extras) >= set(wanted.extras)
            and set(self.groups) >= set(wanted.groups)
        )

    def with_earlier(self, earlier: Stamp, known: set[str]) -> Stamp:
        """Add what was installed before and still exists, so that `install a` then `install b` has both."""
        extras = (set(earlier.extras) & known) | set(self.extras)
        groups = (set(earlier.groups) & known) | set(self.groups)
        return Stamp(self.place, self.inputs, tuple(sorted(extras)), tuple(sorted(groups)))


def read_stamp(path: Path) -> Stamp | None:
    """The stamp at `path`, or None where there is none that can be read."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        return Stamp(**{**fields, "extras": tuple(fields["extras"]), "groups": tuple(fields["groups"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def digest(parts: Iterable[bytes]) -> str:
    """One digest of several byte strings; lengths are part of it, so that borders count."""
    total = hashlib.sha256()
    for part in parts:
        total.update(b"%d:" % len(part) + part)
    return total.hexdigest()


def declared(pyproject: str) -> tuple[set[str], set[str]]:
    """The extras and the dependency groups that a pyproject.toml declares."""
    table = tomllib.loads(pyproject)
    return set(table["project"].get("optional-dependencies", {})), set(table.get("dependency-groups", {}))


def parse_arguments(argv: Sequence[str], extras: set[str], groups: set[str]) -> argparse.Namespace:
    """Parse the command line; a name that pyproject.toml does not know is refused with the known ones."""
    parser = argparse.ArgumentParser("scripts/install", description="Install fglaunch into .venv.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"of {', '.join(sorted(extras))}; default: train")
    parser.add_argument("--group", action="append", default=[], choices=sorted(groups), help="may be repeated")
    parser.add_argument("--fresh", action="store_true", help="remove .venv first")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.extras) - extras:
        parser.error(f"no such extra: {', '.join(sorted(unknown))} (there are: {', '.join(sorted(extras))})")
    arguments.extras = arguments.extras or ["train"]
    return arguments


def wanted_stamp(arguments: argparse.Namespace, env: Mapping[str, str], root: Path) -> Stamp:
    """What this call asks for. The root is part of it: scripts in a moved `.venv` point to the old place."""
    place = digest([str(root).encode(), env.get("UV_TORCH_BACKEND", "").encode()])
    files = [root / "pyproject.toml", root / "constraints.txt", Path(__file__)]
    inputs = digest(file.read_bytes() for file in files)
    return Stamp(place, inputs, tuple(sorted(set(arguments.extras))), tuple(sorted(set(arguments.group))))


# -- Where packages come from ----------------------------------------------------------------------


def parse_pip_config(listing: str) -> dict[str, str]:
    """Options out of `pip config list`; those of `install` win over `global`, as they do in pip."""
    options: dict[str, str] = {}
    lines = [line.partition("=") for line in listing.splitlines()]
    for section in ("global.", "install."):
        for name, _, value in lines:
            if name.startswith(section):
                options[name.removeprefix(section)] = str(ast.literal_eval(value))
    return options


def pip_options(env: Mapping[str, str], config: Mapping[str, str]) -> dict[str, str]:
    """Pip's options that uv has too; as in pip, variables (PIP_INDEX_URL, ...) win over its files."""
    from_env = {name: env.get("PIP_" + name.upper().replace("-", "_"), "") for name in PIP_TO_UV}
    return {name: value for name in PIP_TO_UV if (value := from_env[name] or config.get(name, ""))}


def uv_environment(env: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    """`env` with pip's options passed on to uv wherever uv's own are unset."""
    result = {**env, "UV_PYTHON_DOWNLOADS": env.get("UV_PYTHON_DOWNLOADS", "never")}
    for option, value in options.items():
        names = PIP_TO_UV[option]
        if not any(env.get(name) for name in names):
            words = value.split()
            result[names[0]] = ",".join(words) if option == "find-links" else " ".join(words)
    if result.get("UV_INDEX") and not env.get("UV_INDEX"):
        # pip takes the best version of all indexes, uv that of the first one: keep what pip's setting means.
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return result


def uv_has_settings(env: Mapping[str, str]) -> bool:
    """Whether a uv.toml says where packages come from; then pip's settings are none of uv's business."""
    home = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config")
    files = [Path(env.get("UV_CONFIG_FILE", "/etc/uv/uv.toml")), home / "uv" / "uv.toml"]
    texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
    return any(re.search(r"^\s*\[*(index|extra-index|find-links|torch-backend)", text, re.M) for text in texts)


def torch_backend(env: Mapping[str, str], gpu: bool, system: str) -> str | None:
    """What to tell uv's --torch-backend, or None to leave torch to whatever the user has configured.

    The package index's torch for Linux and Windows brings gigabytes of CUDA, of no use without a GPU.
    """
    if env.get("UV_TORCH_BACKEND") or any(env.get(name) for name in SOURCES) or system == "Darwin":
        return None
    return "auto" if gpu else "cpu"


def has_nvidia_gpu(env: Mapping[str, str]) -> bool:
    """Whether the NVIDIA driver shows a GPU (a container or WSL may have only one of the two signs)."""
    if Path("/dev/nvidiactl").exists():
        return True
    smi = shutil.which("nvidia-smi", path=env.get("PATH"))
    return bool(smi) and succeeds([str(smi), "-L"], env)


# -- Installing ------------------------------------------------------------------------------------


def package_sources(env: Mapping[str, str], venv: Path) -> dict[str, str]:
    """The environment for uv, with pip's settings passed on unless uv has settings of its own."""
    if uv_has_settings(env):
        return dict(env)
    listings = (output_of([*pip, "config", "list"], env) for pip in pip_commands(env, venv))
    return uv_environment(env, pip_options(env, parse_pip_config(next(filter(None, listings), ""))))


def reachable_backend(uv: str, backend: str | None, env: Mapping[str, str], python: str) -> str | None:
    """`backend` if PyTorch's own index has our torch for it, else None: the plain index beats no install."""
    if backend is None:
        return None
    command = [uv, "pip", "compile", "-", "-q", "--no-deps", "-c", "constraints.txt", "--python", python]
    quick = {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "20", **env}
    if succeeds([*command, f"--torch-backend={backend}"], quick, "torch\ntorchvision\n"):
        return backend
    say(f"PyTorch's own index gives no torch for {backend!r}; taking the package index's (CUDA is gigabytes)")
    return None


def install_command(uv: str, python: str, wanted: Stamp) -> list[str]:
    """The one uv call that installs everything; run in the project's root, where the relative paths hold."""
    groups = [word for group in wanted.groups for word in ("--group", group)]
    backend = [f"--torch-backend={wanted.torch_backend}"] if wanted.torch_backend else []
    pins = ["--constraints", "constraints.txt", "--build-constraints", "constraints.txt"]
    project = ["--editable", f".[{','.join(wanted.extras)}]"]
    return [uv, "pip", "install", "--python", python, *pins, *backend, *groups, *project]


def install(venv: Path, wanted: Stamp, env: Mapping[str, str]) -> Stamp:
    """Make `venv` hold what is wanted; what it holds now is returned, ready to be written down."""
    uv_env = package_sources(env, venv)
    uv = get_uv(venv, uv_env, ROOT / "constraints.txt")
    python = str(venv / "bin" / "python")
    if not succeeds([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11, 4))"], env):
        base: str = getattr(sys, "_base_executable", sys.executable)  # we may run in the .venv that is being replaced
        run([uv, "venv", "--quiet", "--allow-existing", "--python", base, str(venv)], uv_env)
    backend = torch_backend(uv_env, has_nvidia_gpu(env), platform.system()) if "train" in wanted.extras else None
    done = Stamp(**{**asdict(wanted), "torch_backend": reachable_backend(uv, backend, uv_env, python)})
    run(install_command(uv, python, done), uv_env)
    return done


def make_ready(arguments: argparse.Namespace, env: Mapping[str, str], known: set[str]) -> None:
    """Install what is missing; nothing at all where the stamp says that all is there."""
    venv = ROOT / ".venv"
    stamp_file = venv / "fglaunch-install.json"
    earlier, wanted = read_stamp(stamp_file), wanted_stamp(arguments, env, ROOT)
    if arguments.fresh or (earlier and earlier.place != wanted.place):
        shutil.rmtree(venv, ignore_errors=True)
        earlier = None
    if earlier and earlier.covers(wanted) and (venv / "bin" / "fglaunch").exists():
        if earlier.torch_backend == "cpu" and has_nvidia_gpu(env):
            say("a GPU is visible, but torch here is for CPUs; `scripts/install --fresh` gets the other one")
        say("nothing to do: .venv has it all")
        return
    stamp_file.unlink(missing_ok=True)
    done = install(venv, wanted.with_earlier(earlier, known) if earlier else wanted, env)
    stamp_file.write_text(json.dumps(asdict(done), indent=1), "utf-8")
    say(f"ready in .venv: {', '.join([*done.extras, *done.groups])}")


def main(argv: Sequence[str]) -> int:
    """Entry point; the exit code is 0 only when everything asked for is installed."""
    extras, groups = declared((ROOT / "pyproject.toml").read_text("utf-8"))
    extras -= APART
    arguments = parse_arguments(argv, extras, groups)
    try:
        make_ready(arguments, os.environ, extras | groups)
    except (InstallError, OSError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
