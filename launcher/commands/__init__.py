"""The commands of `fglaunch`, one file each, found by name and imported only when called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from cluster import ClusterError
from fgtrain.errors import FglaunchError, UserError


def one_line(error: Exception) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split("\n"))


def call(args: argparse.Namespace) -> int:
    """Run the command that was parsed; the user's mistakes become one line and exit code 2."""
    try:
        module = importlib.import_module(f"launcher.commands.{args.command}")
        code: int = module.call(args)
        return code
    except (UserError, ClusterError) as error:
        print(f"fglaunch: {one_line(error)}", file=sys.stderr)
        return 2
    except FglaunchError as error:
        print(f"fglaunch: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `fglaunch ps | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
