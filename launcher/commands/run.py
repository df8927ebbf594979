"""`fglaunch RECIPE`: plan a new run and train it."""

from __future__ import annotations

import argparse
import shlex

from fgtrain.lineage import adopt
from fgtrain.plan import World, share
from fgtrain.runstore import RunFile
from fgtrain.stores import Store
from launcher import foreground, prepare
from launcher.foreground import say
from launcher.supervisor import agent_command, work_root


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    world = World(args.nodes, args.gpus)
    if args.name:
        prepare.check_name(args.name)
    run, notes = prepare.prepare(args.recipe, args.overrides, world, args.name)
    notes += foreground.check_start(run, world, args.port)
    store, store_notes = prepare.checked_store(args.store or prepare.default_store())
    for note in notes + store_notes:
        say(note)
    run = prepare.begin_from(run, store, args.init_from, args.init_skip)
    if args.dry_run:
        print("\n".join(dry_run(run, store, world, args.port)))
        return 0
    runs = prepare.register(run, store)
    adopt(run, runs)
    if args.detach:
        return foreground.detach(runs, world, args.port)
    return foreground.supervise_here(run, runs, world, args.port)


def dry_run(run: RunFile, store: Store, world: World, port: int | None) -> list[str]:
    """Return the plan and the command of every node, as lines."""
    from cluster.local import LocalCluster
    from launcher import engine

    plan = run.plan
    lines = [
        f"run        {run.name} in {store.url}",
        f"recipe     {run.recipe_file}  {run.recipe_digest[:12]}",
        *([f"weights    of {run.init_from}"] if run.init_from else []),
        f"world      {world.nodes} nodes x {world.gpus} processes = {world.size} ranks",
        f"data       {plan.samples} training samples",
        f"steps      {plan.steps} of {plan.total} samples: {plan.positions / plan.samples:g} epochs;"
        f" warm-up {plan.warmup_steps}; evaluation after {', '.join(map(str, plan.evaluate_steps[:6]))}"
        + (" ..." if len(plan.evaluate_steps) > 6 else ""),
        f"micro      {plan.micro_batches} micro-batches of {plan.micro} a step",
    ]
    for rank in range(world.size):
        mine = share(plan.micro_batches, rank, world.size)
        lines.append(f"  rank {rank:<4} {len(mine)} micro-batches: {mine.start}..{mine.stop - 1}")
    nodes = LocalCluster(work_root()).nodes(run.name, world.nodes)
    endpoint = f"{nodes[0].address}:{port or '<free port>'}"
    lines.append(f"{nodes[0].name}      {shlex.join(engine.rendezvous_argv('python', port or 0))}")
    for number, node in enumerate(nodes):
        command = agent_command(run, store.url, world, number, node, endpoint)
        env = " ".join(f"{k}={shlex.quote(v)}" for k, v in sorted(command.env.items()))
        lines.append(f"{node.name}      cd {shlex.quote(command.cwd)} && {env} {shlex.join(command.argv)}")
    return lines
