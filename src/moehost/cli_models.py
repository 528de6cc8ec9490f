"""`moehost models`: what is in a node's store, and whether it is still what was fetched."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from moehost import settings
from moehost.finding import DEPLOY
from moehost.terminal import FAILED, ask_host, data_of, host_of, pyinfra, say, stop

CATALOGUE = "roles.models.facts.Catalogue"
LIBRARY = "/usr/local/lib/moehost"
VERIFY = "roles/models/verify.py"

_host = click.argument("host", metavar="@HOST")
_inventory = click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")


@click.group()
def models() -> None:
    """The models on a node's disk: which there are, and whether they are whole."""


@models.command("list")
@_host
@click.option("--json", "as_json", is_flag=True, help="The models for programs.")
@_inventory
def list_models(host: str, as_json: bool, inventory: str) -> None:
    """Show the models in a node's store. Reads none of them: `verify` does.

    Ends with 0, 1 when a model is not whole or the host can't be asked, 2 on bad input.

    \b
    Example:
        moehost models list @epyc.home.arpa
        moehost models list @epyc.home.arpa --json | jq '.[].bytes'
    """
    found = _catalogue(host, inventory)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    for each in found if not as_json else ():
        size = f"{each['files']} file(s), {each['bytes'] / 1e9:.2f} GB, from {each['source']}"
        click.echo(f"{each['model']}: {each['problem'] or 'whole, as far as sizes tell'}; {size}")
    if not found:
        say(f"{host} has no models")
    if any(each["problem"] for each in found):
        say(f"mend it: {DEPLOY} fetches what is damaged anew, for the models of the inventory's services")
        sys.exit(FAILED)


@models.command()
@_host
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="What was found, for programs.")
@_inventory
def verify(host: str, model: str | None, as_json: bool, inventory: str) -> None:
    """Read the models on a node (or one of them) and compare every file with its sha256.

    The node reads after all others and keeps nothing in memory, so a service is not disturbed; it goes on if you
    break off here. What is damaged is remembered there, and the next deploy fetches those files anew. Ends with
    0, 1 when a file is damaged or the host can't be asked, 2 on bad input.

    \b
    Example:
        moehost models verify @epyc.home.arpa
        moehost models verify @epyc.home.arpa Qwen3.5-397B-A17B-IQ4_NL
    """
    names = [each["model"] for each in _catalogue(host, inventory)]
    if not names:
        stop(f"{host}: has no models, or none since this version; deploy first ({DEPLOY})", code=FAILED)
    if model and model not in names:
        stop(f"{model}: is no model of {host}; it has {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="moehost-") as folder:
        words = ["--data", f"x_folder={folder}", *(("--data", f"x_model={model}") if model else ())]
        run = pyinfra(inventory, "--limit", host_of(host), VERIFY, *words, "-y", show=True)
        path = Path(folder, "result.json")
        if run.returncode or not path.exists():
            stop(f"{host}: could not be inspected; the reason stands above", code=FAILED)
        found: list[dict[str, Any]] = json.loads(path.read_text())
    if as_json:
        click.echo(json.dumps(found, indent=2))
    for each in found if not as_json else ():
        rate = each["bytes"] / 1e6 / max(each["seconds"], 0.1)
        for line in each["damaged"]:
            click.echo(f"{each['model']}: {line}")
        if not each["damaged"]:
            click.echo(f"{each['model']}: OK, {each['bytes'] / 1e9:.2f} GB at {rate:.0f} MB/s")
    if any(each["damaged"] for each in found):
        say(f"mend it: {DEPLOY} fetches what is damaged anew; the services go on until then")
        sys.exit(FAILED)


def _catalogue(host: str, inventory: str) -> list[dict[str, Any]]:
    name = host_of(host)
    try:
        store = settings.read(data_of(host, inventory)).models_dir
    except settings.SettingsError as error:
        stop(*(f"{name}: {line}" for line in error.lines))
    found, reason = ask_host(name, inventory, CATALOGUE, store=store, library=LIBRARY)
    if found is None:
        stop(f"{host}: can't be asked: {reason}", code=FAILED)
    return list(found)
