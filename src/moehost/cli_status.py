"""`moehost status`: how the nodes of a fleet are."""

from __future__ import annotations

import sys

import click

from moehost import cli_fleet, fleet
from moehost.cli_fleet import limit_option
from moehost.fleet import Row
from moehost.rolling import Failure
from moehost.settings import Node
from moehost.terminal import FAILED, host_of


@click.command()
@click.argument("target", metavar="[INVENTORY|@HOST]", default="inventory")
@limit_option
@click.option("--json", "as_json", is_flag=True, help="The table for programs.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def status(target: str, limits: tuple[str, ...], as_json: bool, inventory: str) -> None:
    """Show how nodes are: services, speed of the last benchmark, whether a reboot is needed, what has drifted.

    Asks each host once, all of them at the same time, and changes nothing. Ends with 1 when a node can't be
    asked or would not pass the gate of `moehost deploy`, 2 on bad input.

    \b
    Example:
        moehost status
        moehost status --limit gpu_nodes --limit 'spare*'
        moehost status @epyc.home.arpa --json | jq '.nodes[].services'
    """
    if target.startswith("@"):
        limits = (*limits, host_of(target))
    else:
        inventory = target
    nodes = cli_fleet.wished(inventory, limits)
    right = {name: node for name, node in nodes.items() if isinstance(node, Node)}
    answers, reasons = cli_fleet.asked(right, inventory)
    drained = cli_fleet.drained_now(cli_fleet.router_of(inventory))
    rows = cli_fleet.rows_of_wrong(nodes)
    for name, node in right.items():
        row = cli_fleet.seen(Row(name), answers.get(name, {}), node, drained)
        if name in reasons:
            row.failure = Failure("ask", reasons[name])
        elif says := fleet.gate(answers[name], node):
            row.failure = Failure("gate", says)
        row.outcome = "failed" if row.failure else "ok"
        rows.append(row)
    cli_fleet.show(rows, as_json)
    if any(row.failure for row in rows):
        sys.exit(FAILED)
