"""`moehost lock`: what a node is made of, pinned in a file, and what has drifted from it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from moehost import lock as locking
from moehost.lock import Lock, LockError
from moehost.results import label
from moehost.terminal import FAILED, ask_hosts, data_of, host_of, hosts, say, stop

FACT = "roles.lock.facts.Stack"
FOLDER = Path("locks")


@click.command()
@click.argument("target", metavar="[@HOST|INVENTORY]", default="inventory")
@click.option("--check", is_flag=True, help="Compare with the lock instead of writing it.")
@click.option("--folder", default=FOLDER, show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The locks, or with --check what has drifted, for programs.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def lock(target: str, check: bool, folder: Path, as_json: bool, inventory: str) -> None:
    """Write down what nodes are made of: kernel, driver, packages, engine, images, models and units, with checksums.

    One file for each host, to be kept under version control. With --check nothing is written: what has drifted since
    is named. Changes nothing on a node. Ends with 1 when something has drifted or a host can't be asked, 2 on bad
    input.

    \b
    Example:
        moehost lock
        moehost lock @epyc.home.arpa --check
        moehost lock --check --json | jq 'map_values(length)'
    """
    if target.startswith("@"):
        data_of(target, inventory)
        names = [host_of(target)]
    else:
        inventory, names = target, list(hosts(target))
    paths = {name: folder / f"{label(name)}.json" for name in names}
    before = {name: _read(path) for name, path in paths.items()} if check else {}
    found = _asked(names, inventory)
    if check:
        drifts = {name: locking.drifts(before[name], each) for name, each in found.items()}
        if as_json:
            click.echo(
                json.dumps({name: [asdict(each) for each in those] for name, those in drifts.items()}, indent=2)
            )
        for name, those in drifts.items():
            say(f"{name}: {f'{len(those)} things have drifted' if those else 'is as it was locked'}")
            for each in those if not as_json else ():
                click.echo(f"{name}: {each.text}")
        sys.exit(FAILED if any(drifts.values()) or len(found) < len(names) else 0)
    for name, made in found.items():
        folder.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(locking.to_text(made), encoding="utf-8")
        say(f"{name}: {sum(map(len, made.values()))} things are locked in {paths[name]}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    if len(found) < len(names):
        sys.exit(FAILED)


def _read(path: Path) -> Lock:
    try:
        return locking.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        stop(f"{path}: there is no lock; write one by `moehost lock`")
    except (OSError, UnicodeDecodeError) as error:
        stop(f"{path}: can't be read ({error})")
    except LockError as error:
        stop(str(error))


def _asked(names: list[str], inventory: str) -> dict[str, Lock]:
    """The locks of the hosts that can be asked; what the others say is told."""
    answers, reasons = ask_hosts(names, inventory, FACT)
    found = {}
    for name in names:
        if any(answers.get(name, {}).values()):
            found[name] = locking.of_node(answers[name])
        else:
            say(f"{name}: can't be asked: {reasons.get(name, 'it gave no answer')}")
    return found
