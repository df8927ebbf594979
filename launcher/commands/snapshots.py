"""`fglaunch snapshots [ACTION]`: each action is a file in `launcher.snapshots`."""

from __future__ import annotations

import argparse
import importlib


def call(args: argparse.Namespace) -> int:
    """Run the action that was parsed."""
    module = importlib.import_module(f"launcher.snapshots.{args.action}")
    code: int = module.call(args)
    return code
