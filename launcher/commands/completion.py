"""`fglaunch completion SHELL`: a script for the shell to load."""

from __future__ import annotations

import argparse


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    import shtab

    from launcher.cli import parser

    print(shtab.complete(parser(), shell=args.shell))
    return 0
