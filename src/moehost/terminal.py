"""How commands talk: data goes to stdout, everything else to stderr, a mistake is a line and no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click

FAILED, BAD_INPUT, DOES_NOT_FIT = 1, 2, 3
# What pyinfra says whatever happens: its steps, its sums, and its farewell to a container.
FRAME = re.compile(r"^-->|Error: executed \d+ commands|podman build complete, container left running")


def say(text: str) -> None:
    """Talk, as against data."""
    click.echo(f"moehost: {text}", err=True)


def stop(*lines: str, code: int = BAD_INPUT) -> NoReturn:
    """End with a line for each mistake and no traceback."""
    for line in lines:
        say(line)
    sys.exit(code)


def pyinfra_program() -> str:
    """The pyinfra of this environment."""
    return str(Path(sys.executable).with_name("pyinfra"))


def pyinfra(*arguments: str, show: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pyinfra; `show` lets its talk through to the terminal while it runs."""
    talk = None if show else subprocess.PIPE
    return subprocess.run([pyinfra_program(), *arguments], stdout=subprocess.PIPE, stderr=talk, text=True)


def pyinfra_json(*arguments: str) -> tuple[Any, str]:
    """What a pyinfra command prints as JSON (None if it prints nothing), and its talk."""
    run = pyinfra(*arguments, "--json")
    return json.loads(run.stdout) if run.stdout.strip() else None, run.stderr


def hosts(inventory: str) -> dict[str, dict[str, Any]]:
    """The hosts of an inventory with their data, as pyinfra itself reads them; ends where it can't."""
    return {each["name"]: each["data"] for each in inventoried(inventory)}


def inventoried(inventory: str) -> list[dict[str, Any]]:
    """The hosts of an inventory in its order: `name`, `groups` and `data`; ends where pyinfra can't read it."""
    path = Path(inventory, "hosts.py") if Path(inventory).is_dir() else Path(inventory)
    if not path.is_file():
        stop(f"{path}: there is no such file")
    found, talk = pyinfra_json(str(path), "debug-inventory")
    if found is None:
        stop(f"{path}: pyinfra can't read it: {reason(talk)}")
    if not found:
        stop(f"{path}: names no host")
    return list(found)


def reason(talk: str) -> str:
    """The last line that says something: a traceback ends with its reason, the rest is pyinfra's frame."""
    lines = [line.strip() for line in talk.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not FRAME.search(line)), "no reason given")


def host_of(text: str) -> str:
    """The host that @HOST means; a connector's name begins with an at sign, too, and stays as it is."""
    return text if "/" in text or text == "@local" else text.removeprefix("@")


def data_of(target: str, inventory: str) -> dict[str, Any]:
    """What an inventory has of @HOST; ends where it has no such host."""
    there = hosts(inventory)
    if host_of(target) not in there:
        stop(f"{target}: is no host of {inventory}; it has {', '.join(there)}")
    return there[host_of(target)]


def ask_hosts(
    names: Iterable[str], inventory: str, fact: str, **arguments: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a fact says of hosts of an inventory, all asked at once; and why, for those that can't be asked."""
    names = list(names)
    limits = [word for name in names for word in ("--limit", name)]
    answers, talk = pyinfra_json(inventory, *limits, "fact", fact, *(f"{key}={arguments[key]}" for key in arguments))
    # Its key has the arguments in it.
    found: dict[str, Any] = next(iter((answers or {}).values()), {})
    return found, {name: _reason_of(name, talk) for name in names if name not in found}


def _reason_of(host: str, talk: str) -> str:
    """The last line about a host, or the last line at all."""
    lines = re.findall(rf"^ *\[{re.escape(host)}\] +(.*)$", talk, re.MULTILINE)
    return lines[-1].strip() if lines else reason(talk)


def ask_host(host: str, inventory: str, fact: str, **arguments: str) -> tuple[Any, str]:
    """What a fact says of one host (None if it can't be asked), and the reason for that."""
    found, reasons = ask_hosts([host], inventory, fact, **arguments)
    return found.get(host), reasons.get(host, "")
