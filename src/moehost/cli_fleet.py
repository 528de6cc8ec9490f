"""What `moehost deploy` and `moehost status` have in common: which nodes, and what this computer knows of them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from statistics import median

import click

from moehost import fleet, lock, results, settings, show_fleet
from moehost.cli_lock import FOLDER as LOCKS
from moehost.fleet import Benched, Row
from moehost.rolling import Failure, NoRouter, RollingError, Router, RouterError, chosen
from moehost.routing import routers
from moehost.settings import Node
from moehost.terminal import ask_hosts, hosts, inventoried, say, stop

FACT = "roles.fleet.Fleet"

limit_option = click.option(
    "--limit", "limits", multiple=True, help="A host, a group or a glob of the inventory; may be repeated."
)


def router_of(inventory: str) -> Router:
    """Who sends requests to the nodes of an inventory."""
    found = routers(inventory, hosts(inventory))
    return found if found.wishes else NoRouter()


def wished(inventory: str, limits: Collection[str]) -> dict[str, Node | list[str]]:
    """The settings of the hosts that are meant, in the inventory's order; the mistakes in them where they are wrong.

    Ends with a line where a limit names none.
    """
    there = {each["name"]: each for each in inventoried(inventory)}
    try:
        names = chosen({name: each["groups"] for name, each in there.items()}, tuple(limits))
    except RollingError as error:
        stop(f"--limit: {error}")
    found: dict[str, Node | list[str]] = {}
    for name in names:
        # pyinfra takes such a name for the group's: a deploy of the host would be one of them all.
        if any(name in each["groups"] for other, each in there.items() if other != name):
            stop(f"{name}: is the name of a host and of a group that has others; rename one of them")
        try:
            found[name] = settings.read(there[name]["data"])
        except settings.SettingsError as error:
            found[name] = error.lines
    return found


def drained_now(router: Router) -> Collection[str]:
    """The nodes that get no requests; a router that can't say is told of, and nothing more depends on it."""
    try:
        return router.drained()
    except RouterError as error:
        say(f"which nodes are drained is not known: {error}")
        return ()


def seen(row: Row, texts: Mapping[str, str], node: Node, drained: Collection[str]) -> Row:
    """The row with what the node says of itself, and what this computer has of it."""
    for service in node.services:
        if benched := _benched(row.node, service.name):
            row.bench[service.name] = benched
    return fleet.known(row, texts, node, _locked(row.node), drained) if any(texts.values()) else row


def asked(names: Iterable[str], inventory: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What nodes say of themselves, all asked at once; and why, for those that can't be asked."""
    names = list(names)
    if not names:
        return {}, {}
    answers, reasons = ask_hosts(names, inventory, FACT)
    # A command that was cut off is the fact's default: every text is empty.
    silent = {name: "it gave no answer" for name, texts in answers.items() if not any(texts.values())}
    return {name: texts for name, texts in answers.items() if name not in silent}, reasons | silent


def show(rows: Collection[Row], as_json: bool, **beside: object) -> None:
    """Print the table, or for programs the same and what is beside it."""
    if as_json:
        click.echo(json.dumps({"nodes": {row.node: row.to_json() for row in rows}, **beside}, indent=2))
    else:
        show_fleet.table(list(rows))


def _benched(host: str, service: str) -> Benched | None:
    series = results.series(host, service)
    folder = results.last(series, but=series)
    if folder is None:
        return None
    measured = results.load(folder).measured
    last_s = max(run.started_s for run in measured)
    return Benched(median(run.decode_tok_s for run in measured), time.time() - last_s)


def _locked(host: str) -> lock.Lock | None:
    path = LOCKS / f"{results.label(host)}.json"
    try:
        return lock.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, lock.LockError) as error:
        say(f"{path}: is left out: {error}")
        return None


def rows_of_wrong(nodes: Mapping[str, Node | list[str]]) -> list[Row]:
    """A row for each node whose settings are wrong."""
    return [
        Row(name, "failed", Failure("settings", "; ".join(lines)))
        for name, lines in nodes.items()
        if isinstance(lines, list)
    ]
