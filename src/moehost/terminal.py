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


def pyinfra_json(*arguments: str) -> tuple[Any, list[str]]:
    """What a pyinfra command prints as JSON (None if it fails), and the lines of its talk."""
    pyinfra = str(Path(sys.executable).with_name("pyinfra"))
    run = subprocess.run([pyinfra, *arguments, "--json"], capture_output=True, text=True)
    talk = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    return (json.loads(run.stdout) if run.returncode == 0 and run.stdout.strip() else None), talk
