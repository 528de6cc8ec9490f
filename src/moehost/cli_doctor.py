"""`moehost doctor`: what is wrong with a node, and what mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from moehost import settings, show
from moehost.doctor import examine, worst
from moehost.finding import Finding
from moehost.terminal import FAILED, ask_hosts, data_of, host_of, hosts

FACT = "roles.doctor.Doctor"


@click.command()
@click.argument("target", metavar="[@HOST|INVENTORY]", default="inventory")
@click.option("--json", "as_json", is_flag=True, help="The findings for programs.")
@click.option("--verbose", is_flag=True, help="Also show what is fine.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def doctor(target: str, as_json: bool, verbose: bool, inventory: str) -> None:
    """Say how a node is: cards, memory, kernel, disks, services; and for each fault the command that mends it.

    Asks each host once, all of them at the same time, and changes nothing. Ends with 0 when there is
    no error (warnings may be there), 1 when there is one, 2 on bad input.

    \b
    Example:
        moehost doctor
        moehost doctor @epyc.home.arpa --verbose
        moehost doctor inventory/hosts.py --json | jq 'map_values(.worst)'
    """
    if target.startswith("@"):
        wanted = {host_of(target): data_of(target, inventory)}
    else:
        inventory, wanted = target, hosts(target)
    found = _examined(wanted, inventory)
    if as_json:
        data = {
            host: {"findings": [asdict(each) for each in findings], "worst": worst(findings)}
            for host, findings in found.items()
        }
        click.echo(json.dumps(data, indent=2))
    else:
        for host, findings in found.items():
            show.findings(host, findings, verbose)
    if any(worst(findings) == "error" for findings in found.values()):
        sys.exit(FAILED)


def _examined(wanted: dict[str, dict[str, Any]], inventory: str) -> dict[str, list[Finding]]:
    """The findings of each host; one that can't be asked, or has wrong settings, is one itself."""
    answers, reasons = ask_hosts(wanted, inventory, FACT)
    found = {}
    for host, data in wanted.items():
        # A command that was cut off is the fact's default: every text is empty.
        if not any(answers.get(host, {}).values()):
            says = f"can't be asked: {reasons.get(host, 'it gave no answer')}"
            fix = f"pyinfra {inventory} --limit {host} exec -- true"
            found[host] = [Finding("connection", "error", says, fix)]
            continue
        try:
            found[host] = examine(answers[host], settings.read(data))
        except settings.SettingsError as error:
            found[host] = [Finding("settings", "error", line, f"correct {inventory}") for line in error.lines]
    return found
