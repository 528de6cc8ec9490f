"""How commands talk: data goes to stdout, everything else to stderr, a mistake is a line and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

FAILED, BAD_INPUT, DOES_NOT_FIT = 1, 2, 3


def say(text: str) -> None:
    """Talk, as against data."""
    click.echo(f"moehost: {text}", err=True)


def stop(*lines: str, code: int = BAD_INPUT) -> NoReturn:
    """End with a line for each mistake and no traceback."""
    for line in lines:
        say(line)
    sys.exit(code)


def pyinfra(*arguments: str, show: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the pyinfra of this environment; `show` lets its talk through to the terminal while it runs."""
    program = str(Path(sys.executable).with_name("pyinfra"))
    talk = None if show else subprocess.PIPE
    return subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=talk, text=True)


def pyinfra_json(*arguments: str) -> tuple[Any, str]:
    """What a pyinfra command prints as JSON (None if it fails), and the reason that its talk ends with."""
    run = pyinfra(*arguments, "--json")
    found = json.loads(run.stdout) if run.returncode == 0 and run.stdout.strip() else None
    return found, reason(run.stderr)


def reason(talk: str) -> str:
    """The last line that says something: a traceback ends with its reason, and what begins with an arrow is frame."""
    lines = [line.strip() for line in talk.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not line.startswith("-->")), "no reason given")


def host_of(text: str) -> str:
    """The host that @HOST means; a connector's name begins with an at sign, too, and stays as it is."""
    return text if "/" in text or text == "@local" else text.removeprefix("@")


def ask_host(host: str, inventory: str, fact: str) -> tuple[Any, str]:
    """What a fact says of a host of an inventory (None if it can't be asked), and the reason for that."""
    answers, why = pyinfra_json(inventory, "--limit", host, "fact", fact)
    return (answers or {}).get(fact, {}).get(host), why
