"""`fglaunch`: argument parsing. Commands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False  # as type checkers take it; importing it from typing would cost a tenth of `--help`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

COMMANDS = {
    "run": "train a recipe (the word `run` may be left out)",
    "show": "print a recipe, each value with where it came from",
    "ps": "list runs",
    "logs": "print a run's logs",
    "attach": "watch a run that goes on elsewhere",
    "stop": "stop a run; it can be resumed",
    "resume": "go on with a run from its newest snapshot, or an older one",
    "snapshots": "list, verify, prune, export and compare snapshots",
    "rehearse": "replay a spot trace against a recipe, and say what it would come to",
    "samples": "print which samples the committed steps of a run saw",
    "data": "fetch data sets, and prepare their pictures",
    "clusters": "list the clusters to run on, and check them",
    "nodes": "list nodes that are not used any more since they were found broken, or use one again",
    "doctor": "check this machine",
    "completion": "print a shell completion script",
}

SNAPSHOT_ACTIONS = {
    "list": "list a run's snapshots (the word `list` may be left out)",
    "verify": "read every byte of a run's snapshots",
    "prune": "delete snapshots, and chunks that no run of the store needs",
    "export": "write a snapshot's weights to a safetensors file",
    "diff": "compare two snapshots; exit code 0 if the weights are the same",
}


STRATEGIES = {
    "ddp": 'strategy={"kind": "ddp"}',
    "fsdp": 'strategy={"kind": "fsdp"}',
    "zero1": 'strategy={"kind": "zero", "stage": 1}',
    "zero2": 'strategy={"kind": "zero", "stage": 2}',
    "zero3": 'strategy={"kind": "zero", "stage": 3}',
}
"""What `--strategy NAME` is short for, as `--set` takes it."""

ENGINES = ("torchrun", "deepspeed")


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal, found without `shutil`, whose import takes a while."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, width=max(columns, 40) - 2)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` says what there is\n")


class _FirstOverride(argparse.Action):
    """Changes the recipe before `--set` does, so that the strategy's own fields can be set beside it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.overrides = [STRATEGIES[values], *namespace.overrides]


def parser(command: str | None = None) -> Parser:
    """Build the parser of the whole command line; of a named command's line, with the others known by name only."""
    top = Parser(
        formatter_class=Formatter,
        prog="fglaunch",
        description="Train a recipe on any GPUs, and finish.",
        epilog="`fglaunch RECIPE ...` is short for `fglaunch run RECIPE ...`.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    sub = top.add_subparsers(dest="command", metavar="COMMAND")
    adders = {
        "run": _add_run,
        "show": _add_show,
        "ps": lambda p: None,
        "logs": _add_logs,
        "attach": _add_run_name,
        "stop": _add_run_name,
        "resume": _add_resume,
        "snapshots": _add_snapshots,
        "rehearse": _add_rehearse,
        "samples": _add_run_name,
        "data": _add_data,
        "clusters": _add_clusters,
        "nodes": _add_nodes,
        "doctor": lambda p: None,
        "completion": _add_completion,
    }
    for name, help_ in COMMANDS.items():
        description = help_[0].upper() + help_[1:] + "."
        p = sub.add_parser(name, help=help_, description=description, formatter_class=Formatter)
        if command not in (None, name):
            continue
        adders[name](p)
        if name in ("show", "ps", "rehearse", "samples", "clusters", "nodes", "doctor"):
            _add_json(p)
        if name not in ("show", "data", "clusters", "completion", "snapshots", "rehearse"):
            _add_store(p)
    return top


def _add_recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", metavar="RECIPE", help="a recipe file, or FILE.py:NAME").complete = {  # type: ignore[attr-defined]
        "bash": "_shtab_compgen_files",
        "zsh": "_files -g '*.py'",
    }
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="change a value")
    help_ = f"how state lies over ranks, in place of the recipe's: {', '.join(STRATEGIES)}"
    p.add_argument("--strategy", action=_FirstOverride, choices=STRATEGIES, metavar="NAME", help=help_)


def _add_json(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print JSON")


def _add_store(p: argparse.ArgumentParser, default: str = "$FGLAUNCH_STORE, or ./store") -> None:
    p.add_argument("--store", metavar="URL", help=f"where runs are kept (default: {default})")


def _add_world(p: argparse.ArgumentParser, nodes: str | None, gpus: int | None) -> None:
    help_ = "machines, or the fewest and the most that may take part (default: %(default)s)"
    p.add_argument("--nodes", default=nodes, metavar="N|MIN:MAX", help=help_)
    p.add_argument("--gpus", type=int, default=gpus, metavar="N", help="GPUs a node (default: %(default)s)")
    p.add_argument("--spares", type=int, metavar="K", help="more machines, that wait to step in (default: none)")
    p.add_argument("--detect", type=float, metavar="S", help="a machine silent for S seconds is lost (default: 3)")
    help_ = f"what starts the processes of a node: {', '.join(ENGINES)} (default: torchrun)"
    p.add_argument("--engine", choices=ENGINES, metavar="NAME", help=help_)
    p.add_argument("--cluster", metavar="NAME", help="where to run (default: this machine, or what clusters.toml says)")
    p.add_argument("--port", type=int, metavar="N", help="where agents meet (default: a free port)")
    p.add_argument("--detach", action="store_true", help="go on in the background")
    p.add_argument(
        "--supervise",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change how failures are dealt with, for example lost.tries=20 (docs/supervision.md)",
    )


def _add_run(p: argparse.ArgumentParser) -> None:
    _add_recipe(p)
    _add_world(p, "1", 1)
    p.add_argument("--name", help="the run's name (default: made up from the recipe's and the time)")
    p.add_argument("--init-from", metavar="RUN[@STEP]", help="begin with the weights of another run's snapshot")
    p.add_argument(
        "--init-skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="... but leave the tensors of these names fresh, for example 'fc.*'",
    )
    p.add_argument("--fit", action="store_true", help="first search for the largest micro-batch that fits")
    p.add_argument("--profile", type=int, default=0, metavar="STEPS", help="profile so many steps: a trace, a summary")
    p.add_argument("--dry-run", action="store_true", help="print the plan and every command line; start nothing")
    _add_limits(p)


def _add_limits(p: argparse.ArgumentParser) -> None:
    p.add_argument("--max-cost", type=float, metavar="X", help="stop when the nodes have cost so much")
    p.add_argument("--max-hours", type=float, metavar="H", help="stop after so many hours")
    p.add_argument("--max-idle", type=float, metavar="H", help="stop after so many hours without a step")
    p.add_argument("--deadline", metavar="T", help="say when it will be missed: 2026-11-22T08:00, or 12h from now")


def _add_show(p: argparse.ArgumentParser) -> None:
    _add_recipe(p)


def _add_run_name(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run's name")


def _add_logs(p: argparse.ArgumentParser) -> None:
    _add_run_name(p)
    p.add_argument("-f", "--follow", action="store_true", help="go on printing what is added")
    p.add_argument("--rank", type=int, metavar="R", help="of this rank only")
    p.add_argument("--attempt", type=int, metavar="A", help="of this attempt (default: the newest; 0: before any)")
    p.add_argument("--agents", action="store_true", help="what agents and the processes beside them wrote instead")


def _add_resume(p: argparse.ArgumentParser) -> None:
    _add_run_name(p)
    _add_world(p, None, None)
    p.add_argument("--from", type=int, dest="from_step", metavar="STEP", help="set aside all snapshots newer than this")
    p.add_argument("--strategy", choices=STRATEGIES, metavar="NAME", help=f"from now on: {', '.join(STRATEGIES)}")
    p.add_argument("--as-recorded", action="store_true", help="use the recorded recipe even if its file has changed")
    _add_limits(p)


def _add_nodes(p: argparse.ArgumentParser) -> None:
    p.add_argument("--lift", metavar="NODE", help="use this node again")
    p.add_argument("--cluster", metavar="NAME", help="of this cluster only")
    p.add_argument("--run", metavar="RUN", help="of this run, too: it has a list of its own")


def _add_snapshots(p: argparse.ArgumentParser) -> None:
    p.epilog = (
        "`fglaunch snapshots RUN` is short for `fglaunch snapshots list RUN`,"
        " which is also the way to list a run that is called like an action."
    )
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = {
        "list": _add_run_name,
        "verify": _add_snapshot,
        "prune": _add_prune,
        "export": _add_export,
        "diff": _add_diff,
    }
    for name, help_ in SNAPSHOT_ACTIONS.items():
        action = sub.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
        add[name](action)
        _add_store(action)
        if name != "export":
            _add_json(action)


def _add_snapshot(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN[@STEP]", help="a run's name, and a step if one snapshot is meant")


def _add_prune(p: argparse.ArgumentParser) -> None:
    _add_run_name(p)
    p.add_argument("--keep", type=int, metavar="N", help="keep the newest N that verify (default: 1, with --every)")
    p.add_argument("--every", type=int, metavar="K", help="keep the first at or past each multiple of K steps")
    p.add_argument(
        "--grace",
        type=float,
        metavar="S",
        help="leave chunks alone that are younger, in seconds; 0: nobody else writes now (default: 6 hours)",
    )
    p.add_argument("--dry-run", action="store_true", help="print what would go; delete nothing")


def _add_export(p: argparse.ArgumentParser) -> None:
    _add_snapshot(p)
    p.add_argument("--to", required=True, metavar="FILE", help="the safetensors file to write")
    p.add_argument("--raw", action="store_true", help="the weights themselves, not their moving average")


def _add_diff(p: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        p.add_argument(name, metavar=f"{name.upper()}", help="RUN or RUN@STEP")


def _add_rehearse(p: argparse.ArgumentParser) -> None:
    _add_recipe(p)
    p.add_argument("--trace", metavar="FILE", help="Bamboo's form (ms,add|remove,node) or JSON counts per tick")
    p.add_argument("--nodes", default="2", metavar="N", help="of the run; or MIN:MAX (default: %(default)s)")
    p.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs a node (default: %(default)s)")
    p.add_argument("--speed", type=float, metavar="X", help="how much faster than the trace (default: 60)")
    p.add_argument("--hours", type=float, metavar="H", help="the trace's first hours only")
    p.add_argument(
        "--notice", type=float, default=0.0, metavar="S", help="seconds from a notice to the loss (default: 0)"
    )
    p.add_argument("--simulate", action="store_true", help="start nothing: model it, at the trace's own pace")
    p.add_argument("--costs-from", metavar="RUN", help="... with what this run measured")
    p.add_argument(
        "--mtbf-hours", type=float, metavar="H", help="instead of a trace: how long a node lasts, on average"
    )
    p.add_argument("--away", type=float, default=10.0, metavar="MIN", help="... until it is replaced (default: 10)")
    p.add_argument("--price", type=float, metavar="P", help="of a node hour (default: what clusters.toml says)")
    p.add_argument("--on-demand", type=float, metavar="P", help="... on demand (default: the same)")
    p.add_argument("--work-hours", type=float, metavar="H", help="with --simulate: spot or on-demand for so much work")
    p.add_argument("--deadline-hours", type=float, metavar="H", help="... to be done after so many hours")
    _add_store(p, "a temporary folder; for --costs-from $FGLAUNCH_STORE, or ./store")


def _add_data(p: argparse.ArgumentParser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    get = sub.add_parser("get", help="download and unpack a data set")
    get.add_argument("name", metavar="NAME", help="the data set, for example cub200")
    get.add_argument("--into", default="data", metavar="DIR", help="where to (default: %(default)s)")
    get.add_argument("--mirror", metavar="URL", help="download from here instead; the checksum stays")
    cache = sub.add_parser("cache", help="decode and scale a recipe's pictures ahead of a run, on this machine")
    _add_recipe(cache)
    _add_store(cache)


def _add_clusters(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    p.add_argument("--check", action="store_true", help="look at every machine: python, disk, /dev/shm, GPUs")


def _add_completion(p: argparse.ArgumentParser) -> None:
    p.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")


def _with_command(argv: Sequence[str]) -> list[str]:
    """Put in the words that may be left out: `run`, and the `list` of `snapshots`."""
    words = list(argv)
    first = words[0] if words else "--help"
    if first == "snapshots" and words[1:2] not in ([w] for w in (*SNAPSHOT_ACTIONS, "-h", "--help")):
        return ["snapshots", "list", *words[1:]]
    if first in COMMANDS or first in ("-h", "--help", "--version"):
        return words or ["--help"]
    if first.isalpha() and (near := _nearest_command(first)):
        parser().error(f"there is no command {first!r}; did you mean {near!r}?")
    return ["run", *words]


def _nearest_command(word: str) -> str | None:
    """Return the command that a word was probably meant to be, if it names no file."""
    import difflib
    from pathlib import Path

    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.7)
    return near[0] if near and not Path(word).exists() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fglaunch` and return its exit code: 0 done, 1 failed, 2 the user's mistake, 3 fenced, 130 interrupted."""
    words = _with_command(sys.argv[1:] if argv is None else argv)
    args = parser(words[0]).parse_args(words)
    if args.version:
        from fgtrain import __version__

        print(f"fglaunch {__version__}")
        return 0
    if args.command is None:
        parser().print_help()
        return 2
    from launcher.commands import call

    return call(args)
