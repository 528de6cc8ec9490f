"""`moehost notify`: whether the owner is told."""

from __future__ import annotations

import sys

import click

from moehost.terminal import FAILED, data_of, host_of, pyinfra, stop

DEPLOY = "roles/notify/tell.py"


@click.group()
def notify() -> None:
    """How you are told when a unit fails; docs/metrics.md."""


@notify.command("test")
@click.argument("host", metavar="@HOST")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def send(host: str, inventory: str) -> None:
    """Have a node send one message, the way its settings say. Ends with 1 when it can't, 2 on bad input.

    \b
    Example:
        moehost notify test @epyc.home.arpa
    """
    if not host.startswith("@"):
        stop(f"{host}: write the host as @{host}")
    data_of(host, inventory)
    if pyinfra(inventory, "--limit", host_of(host), DEPLOY, "-y", show=True).returncode:
        sys.exit(FAILED)
