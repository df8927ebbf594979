"""`fglaunch RECIPE`: plan a new run and train it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec

from cluster import Cluster, Command, Node, Rented
from fgtrain.deepspeed_launch import hostfile
from fgtrain.errors import UserError
from fgtrain.lineage import adopt
from fgtrain.parts import Part, leaves
from fgtrain.plan import Plan, World, chosen_world, share
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import Store, open_store
from fgtrain.strategies import Strategy
from launcher import foreground, limits, prepare, queued, supervision
from launcher.clusters import choose, find_cluster, find_queue, prices_on
from launcher.fleet import agent_command, deepspeed_commands
from launcher.foreground import say
from launcher.ownership import owner_of, refuse_beside
from launcher.sizing import memory_line
from launcher.stores import rendezvous_command

_SHOWN = 6  # evaluations named by --dry-run


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    world = chosen_world(World(1, 1), args.nodes, args.gpus, args.spares, args.detect, args.engine)
    asked = limits.asked(args)
    settings = supervision.changed(supervision.Supervision(), args.supervise)
    if args.profile < 0:
        raise UserError(f"--profile {args.profile}: a number of steps, 1 or more; leave it out to profile none")
    if args.name is not None:
        prepare.check_name(args.name)
    cluster_name = choose(args.cluster)
    cluster, queue = find_cluster(cluster_name, Path.cwd()), find_queue(cluster_name, Path.cwd())
    if queue:
        queued.check_world(world)
    limits.check_priced(asked, prices_on(cluster_name, cluster))
    run, notes = prepare.prepare(args.recipe, args.overrides, world, args.name)
    notes += foreground.check_start(run, cluster, world, args.port, queued=queue is not None)
    store = open_store(args.store or prepare.default_store())
    foreground.check_store(store, cluster_name, cluster)
    run = prepare.begin_from(run, store, args.init_from, args.init_skip)
    run = msgspec.structs.replace(run, fit=args.fit, profile=args.profile)
    if not args.dry_run:  # which leaves no trace
        notes += prepare.try_store(store)
    prepare.check_unused(run.name, store)
    deadline = asked.deadline is not None
    if not args.dry_run and queue:
        refuse_beside(queue, owner_of(run, store.url))
    elif not args.dry_run:
        foreground.make_ready(run, RunStore(store, run.name), cluster_name, cluster, world, deadline=deadline)
    for note in notes:
        say(note)
    if args.dry_run and queue:
        script = queue.script(queued.request(RunStore(store, run.name), cluster_name, world))
        print("\n".join([*planned(run, store, world), script.rstrip()]))
        return 0
    if args.dry_run:
        nodes = foreground.usable_nodes(RunStore(store, run.name), cluster_name, cluster, world)
        print("\n".join(dry_run(run, store, cluster, nodes, world, args.port, deadline=deadline)))
        return 0
    runs = prepare.register(run, store)
    runs.write(supervision.KEY, settings)
    limits.set_limits(runs, asked)
    adopt(run, runs)
    return queued.start(queue, run, runs, cluster_name, world, args.port, args.detach)


def planned(run: RunFile, store: Store, world: World) -> list[str]:
    """Return the plan, as lines."""
    plan = run.plan
    lines = [
        f"run        {run.name} in {store.url}",
        f"recipe     {run.recipe_file}  {run.recipe_digest[:12]}",
        *([f"weights    of {run.init_from}"] if run.init_from else []),
        f"world      {_world(world)}",
        f"data       {plan.samples} training samples",
        f"steps      {plan.steps} of {plan.total} samples: {plan.positions / plan.samples:g} epochs;"
        f" warm-up {plan.warmup_steps}; evaluation after {_evaluations(plan)}",
        f"strategy   {strategy_words(run.recipe.strategy)}",
        memory_line(run.recipe, world.size),
        f"micro      {plan.micro_batches} micro-batches of {plan.micro} a step"
        + ("; --fit looks for the largest that fits" if run.fit else ""),
    ]
    for rank in range(world.size):
        mine = share(plan.micro_batches, rank, world.size)
        lines.append(f"  rank {rank:<4} {len(mine)} micro-batches: {mine.start}..{mine.stop - 1}")
    return lines


def dry_run(
    run: RunFile,
    store: Store,
    cluster: Cluster,
    nodes: Sequence[Node],
    world: World,
    port: int | None,
    *,
    deadline: bool = False,
) -> list[str]:
    """Return the plan, what the machines are offered for, and the command of every node, as lines."""
    found = foreground.offers(cluster, len(nodes), deadline=deadline) if isinstance(cluster, Rented) else []
    offers = [f"offer      {offer}" for offer in found]
    where, meeting = cluster.rendezvous_node(run.name) or nodes[0], port or "FREE_PORT"
    commands = [(where, rendezvous_command(where, meeting))]
    for node, share_ in zip(nodes, cluster.hardware(nodes), strict=True):
        command = agent_command(run, store.url, world, node, share_, f"{where.address}:{meeting}")
        commands.append((node, command))
    return [*planned(run, store, world), *offers, *(f"{n.name:<10} {_spell(n, c)}" for n, c in commands)] + (
        _deepspeed(run, store, cluster, nodes, world, f"{where.address}:{meeting}")
        if world.engine == "deepspeed"
        else []
    )


def _deepspeed(
    run: RunFile, store: Store, cluster: Cluster, nodes: Sequence[Node], world: World, endpoint: str
) -> list[str]:
    """Return the hostfile, and what each node's agent starts, once they have met in this order, as lines."""
    members = nodes[: world.most]
    hosts = hostfile([node.name for node in members], world.gpus).splitlines()
    commands = deepspeed_commands(run, store.url, world, members, cluster.hardware(nodes), endpoint)
    return [f"hostfile   {line}" for line in hosts] + [
        f"{node.name:<10} {shlex.join(argv)}" for node, argv in zip(members, commands, strict=True)
    ]


def strategy_words(strategy: Strategy) -> str:
    """Spell a strategy: its kind, and its fields."""
    assert isinstance(strategy, Part)
    fields = " ".join(f"{name}={value}" for name, value in leaves(strategy))
    return f"{strategy.__struct_config__.tag} {fields}".rstrip()


def _world(world: World) -> str:
    """Spell the world: how many ranks, at least and at most, and who waits."""
    ranks = f"{world.size} ranks" if world.max_nodes is None else f"{world.nodes * world.gpus} to {world.size} ranks"
    spares = f"; {world.spares} nodes wait to step in" if world.spares else ""
    starts = "" if world.engine == "torchrun" else f"; {world.engine} starts them"
    return f"{world.span} nodes x {world.gpus} processes = {ranks}{starts}; lost after {world.detect_s:g} s{spares}"


def _spell(node: Node, command: Command) -> str:
    """Write a command as a shell reads it."""
    env = [f"{k}={shlex.quote(v)}" for k, v in sorted(command.env.items())]
    return " ".join([f"cd {shlex.quote(node.project)} &&", *env, shlex.join(command.argv)])


def _evaluations(plan: Plan) -> str:
    """Name the first few steps after which the run evaluates."""
    due = list(islice((s for s in range(1, plan.steps + 1) if plan.evaluates_after(s)), _SHOWN + 1))
    return ", ".join(map(str, due[:_SHOWN])) + (" ..." if len(due) > _SHOWN else "")
