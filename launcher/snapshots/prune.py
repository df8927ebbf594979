"""`fglaunch snapshots prune RUN`: delete the snapshots that a policy does not keep, then the store's garbage."""

from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec

from fgtrain.collect import GRACE_S, Amount, Collected
from fgtrain.errors import UserError
from fgtrain.housekeeping import turn
from fgtrain.prune import Policy, Pruned, foresee_pruning, prune
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.foreground import say
from launcher.prepare import default_store
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Run the action; exit code 1 if the chunks could not be collected."""
    policy = _policy(args)
    grace_s = GRACE_S if args.grace is None else args.grace
    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    if args.dry_run:
        pruned = foresee_pruning(runs, policy, grace_s)
    else:
        with turn(runs.store) as mine:
            pruned = prune(mine, runs, policy, grace_s)
    if args.json:
        print(json.dumps(_plain(pruned), indent=1))
    else:
        print("\n".join(spell(pruned, grace_s, dry_run=args.dry_run)))
    if pruned.refused:
        remedy = "upgrade fglaunch, or delete that object if it is broken"
        say(f"fglaunch: no chunk was collected: {pruned.refused}; {remedy}")
    return 1 if pruned.refused else 0


def _policy(args: argparse.Namespace) -> Policy:
    if args.keep is None and args.every is None:
        raise UserError("snapshots prune: say what to keep: --keep N, --every K or both")
    for name in ("keep", "every"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: it must be 1 or more; the newest snapshot is always kept")
    if args.grace is not None and not args.grace >= 0:
        raise UserError(f"--grace {args.grace}: it must be 0 or more seconds")
    return Policy(args.keep or 1, args.every)


def _plain(pruned: Pruned) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(pruned)
    return plain


def spell(pruned: Pruned, grace_s: float, *, dry_run: bool) -> list[str]:
    """Return what was done, or would be, as lines."""
    lines = [f"keep    {name}  {reason}" for name, reason in sorted(pruned.kept.items())]
    verb = "would delete" if dry_run else "deleted"
    for s in pruned.removed:
        where = " (abandoned)" if "/abandoned/" in s.key else ""
        lines.append(f"{verb}  step {s.step}, attempt {s.attempt}{where}: {s.bytes_:,} bytes of its own")
    return lines + (_collection(pruned.collected, grace_s, dry_run=dry_run) if pruned.collected else [])


def _collection(c: Collected, grace_s: float, *, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    hours = f"{grace_s / 3600:g} h"
    lines = [
        (c.deleted, f"{would}deleted"),
        (c.set_aside, f"{would}set aside; a prune {hours} from now deletes them"),
        (c.young, f"without a reference, but younger than {hours}: left alone"),
        (c.restored, f"{would}taken back from the trash: they are referred to again"),
    ]
    return [_amount(amount, text) for amount, text in lines if amount.objects] + [_amount(c.referred, "in use")]


def _amount(amount: Amount, text: str) -> str:
    return f"{amount.objects} chunks, {amount.bytes_:,} bytes {text}"
