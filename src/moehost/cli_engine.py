"""`moehost engine ...`: the releases of a node's engine, and which of them serves."""

from __future__ import annotations

import json
from typing import Any

import click

from moehost import show
from moehost.terminal import FAILED, ask_host, host_of, pyinfra, say, stop

CATALOGUE = "roles.ik_llama.facts.Catalogue"
USE, PRUNE = "roles/llama_server/use.py", "roles/ik_llama/prune.py"

_host = click.argument("host", metavar="@HOST")
_inventory = click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")


@click.group()
def engine() -> None:
    """The releases of a node's engine: which there are, which serves, and the way back."""


@engine.command("list")
@_host
@click.option("--json", "as_json", is_flag=True, help="The build.json of each release, for programs.")
@_inventory
def list_releases(host: str, as_json: bool, inventory: str) -> None:
    """Show the releases on a node, newest first.

    \b
    Example:
        moehost engine list @epyc.home.arpa
        moehost engine list @epyc.home.arpa --json | jq '.releases[].proofs'
    """
    found = _catalogue(host, inventory)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show.releases(found)


@engine.command()
@click.argument("release")
@_host
@_inventory
def use(release: str, host: str, inventory: str) -> None:
    """Switch a node to a release that it has; the beginning of its name will do.

    The switch is the one of a deploy: every service must answer with the new release, else the old one
    serves on. The next deploy goes by the inventory again.

    \b
    Example:
        moehost engine use 8337e4cd3861 @epyc.home.arpa
    """
    _switch(release, host, inventory)


@engine.command()
@_host
@_inventory
def rollback(host: str, inventory: str) -> None:
    """Switch a node to the release that served before the current one.

    \b
    Example:
        moehost engine rollback @epyc.home.arpa
    """
    _switch("previous", host, inventory)


@engine.command()
@_host
@click.option("--keep", default=3, show_default=True, type=click.IntRange(min=1), help="Releases that stay.")
@_inventory
def prune(host: str, keep: int, inventory: str) -> None:
    """Remove old releases; the current one and the one before it always stay.

    \b
    Example:
        moehost engine prune @epyc.home.arpa --keep 2
    """
    before = _names(_catalogue(host, inventory))
    _deploy(host, inventory, PRUNE, f"x_keep={keep}")
    after = _names(_catalogue(host, inventory))
    gone = [each for each in before if each not in after]
    say(f"removed {', '.join(gone) or 'nothing'}; {len(after)} releases stay")


def _switch(release: str, host: str, inventory: str) -> None:
    _deploy(host, inventory, USE, f"x_release={release}")
    found = _catalogue(host, inventory)
    say(f"{found['current']} is current on {host}; the next deploy goes by the inventory again (engine.commit)")


def _deploy(host: str, inventory: str, deploy: str, data: str) -> None:
    """Run a deploy of ours on one host, and let its talk be seen."""
    if pyinfra(inventory, "--limit", host_of(host), deploy, "--data", data, "-y", show=True).returncode:
        stop(f"{host} is as it was; the reason stands above", code=FAILED)


def _catalogue(host: str, inventory: str) -> dict[str, Any]:
    found, reason = ask_host(host_of(host), inventory, CATALOGUE)
    if found is None:
        stop(f"{host}: can't be asked: {reason}")
    return dict(found)


def _names(found: dict[str, Any]) -> list[str]:
    return [each["name"] for each in found["releases"]]
