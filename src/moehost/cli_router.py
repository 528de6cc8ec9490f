"""`moehost router ...`: which nodes get requests, and which are taken out."""

from __future__ import annotations

import json
import time
from datetime import datetime

import click

from moehost.rolling import RouterError
from moehost.routing import WAIT_S, WELL_S, Routers, Seen, routers
from moehost.terminal import FAILED, host_of, hosts, say, stop

_inventory = click.option("--inventory", default="inventory", show_default=True, help="Where hosts are looked up.")
_nodes = click.argument("nodes", metavar="NODE...", nargs=-1, required=True)


@click.group()
def router() -> None:
    """Which nodes get requests of the routers that stand before them."""


@router.command()
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
@_inventory
def status(as_json: bool, inventory: str) -> None:
    """Show what each router knows of its nodes: who is ready, who is drained and until when, who is at work.

    Ends with 1 when a router can't be asked.

    \b
    Example:
        moehost router status
        moehost router status --json | jq '.[].nodes'
    """
    there = _routers(inventory)
    try:
        seen = there.seen()
    except RouterError as error:
        stop(str(error), code=FAILED)
    if as_json:
        click.echo(json.dumps({host: vars(each) for host, each in seen.items()}, indent=2))
        return
    for host, each in seen.items():
        click.echo(f"{host} (https://{there.wishes[host].host}:{there.wishes[host].port})")
        _show(each)


def _show(seen: Seen) -> None:
    for name, node in seen.nodes.items():
        until = node["drained_until"]
        for model, found in node["models"].items():
            state = f"{found['state']:12}  {node['requests']:4} request(s)"
            click.echo(f"  {name:32}  {model:20}  {state}{_until(until) if until else ''}".rstrip())
    for model, found in seen.models.items():
        click.echo(f"  {model}: {found['nodes_ready']} node(s) ready, {found['waiting']} request(s) wait")


def _until(until_s: float) -> str:
    left = max(0, round((until_s - time.time()) / 60))
    return f"  drained until {datetime.fromtimestamp(until_s):%H:%M} ({left} min left)"


@router.command()
@_nodes
@click.option("--minutes", type=click.IntRange(1, 1440), help="How long it lasts.  [default: router.drain_minutes]")
@click.option(
    "--wait", type=click.IntRange(0), default=WAIT_S, show_default=True, help="Seconds to wait for requests to end."
)
@_inventory
def drain(nodes: tuple[str, ...], minutes: int | None, wait: int, inventory: str) -> None:
    """Send nodes no new requests, and wait until they have none under way.

    It lasts for a time and no longer, so that no node is forgotten; the same again renews it. Conversations go on at
    other nodes. Ends with 1 when requests are still under way after --wait; no new ones come even so.

    \b
    Example:
        moehost router drain epyc1.home.arpa
        moehost router drain @epyc1.home.arpa --minutes 240 --wait 60
    """
    there, names = _named(nodes, inventory)
    try:
        there.drain(names, minutes, wait)
    except RouterError as error:
        stop(str(error), code=FAILED)
    say(f"{', '.join(names)}: no request is under way, and none comes; moehost router ready ends that")


@router.command()
@_nodes
@click.option(
    "--wait", type=click.IntRange(0), default=WELL_S, show_default=True, help="Seconds to wait for a node to be well."
)
@_inventory
def ready(nodes: tuple[str, ...], wait: int, inventory: str) -> None:
    """Send nodes requests again, as soon as they are well.

    \b
    Example:
        moehost router ready epyc1.home.arpa
    """
    there, names = _named(nodes, inventory)
    try:
        there.ready(names, wait)
    except RouterError as error:
        stop(str(error), code=FAILED)
    say(f"{', '.join(names)}: gets requests")


def _routers(inventory: str) -> Routers:
    there = routers(inventory, hosts(inventory))
    if not there.wishes:
        stop(
            f"{inventory}: no host is a router; write router: {{'host': ..., 'nodes': [...]}} for one, see router.md"
        )
    return there


def _named(nodes: tuple[str, ...], inventory: str) -> tuple[Routers, list[str]]:
    """The routers, and the nodes by their names in the inventory."""
    there = _routers(inventory)
    names = [host_of(each) for each in nodes]
    known = dict.fromkeys(name for wish in there.wishes.values() for name in wish.nodes)
    if strangers := [name for name in names if name not in known]:
        stop(f"{', '.join(strangers)}: no router stands before it; they stand before {', '.join(known)}")
    return there, names
