"""The table of a fleet, and what is said while a deploy goes over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from moehost.doctor.system import ago
from moehost.fleet import Row, Serving, ordered

COLOURS = {"ok": "", "failed": "red", "untouched": "bright_black"}
# Names are to be copied: no cell is cut off, whatever the width of the terminal.
WIDTH = 200


def table(rows: Sequence[Row]) -> None:
    """Print a row for each node, those that failed last, and then why, in a line each."""
    is_run = any(row.roles is not None for row in rows)
    console = Console(highlight=False, markup=False, width=WIDTH, soft_wrap=True)
    made = Table(box=None, padding=(0, 1))
    changed = ["roles changed"] if is_run else []
    for heading in ("node", "outcome", *changed, "services", "decode tok/s", "reboot", "drift"):
        made.add_column(heading, no_wrap=True)
    if is_run:
        made.add_column("duration", justify="right")
    for row in ordered(rows):
        made.add_row(*_cells(row, is_run), style=COLOURS[row.outcome])
    console.print(made)
    for row in ordered(rows):
        if row.failure:
            console.print(f"{row.node}: {row.failure.step}: {row.failure.reason}")


def _cells(row: Row, is_run: bool) -> Iterator[str]:
    yield row.node
    yield row.outcome
    if is_run:
        yield "-" if row.roles is None else ", ".join(row.changed) or "none"
    yield _services(row.services)
    yield (
        "\n".join(f"{name}: {each.tok_s:.1f}, {ago(int(each.age_s))} ago" for name, each in row.bench.items()) or "-"
    )
    yield "-" if row.reboot is None else "needed" if row.reboot else "no"
    yield "-" if row.drift is None else f"{len(row.drift)} things" if row.drift else "none"
    if is_run:
        yield "-" if row.duration_s is None else f"{row.duration_s:.0f} s"


def _services(found: dict[str, Serving] | None) -> str:
    if found is None:
        return "not known"
    return "\n".join(f"{name}: {each.state}" for name, each in found.items()) or "none"


def role(event: dict[str, Any]) -> str:
    """A role that a node is through with, as a line."""
    changed = f", {len(event['changed'])} changed" if event["changed"] else ""
    failed = f", failed: {event['failed']}" if event["failed"] else ""
    return f"{event['host']}: {event['role']} {event['duration_s'] or 0:.1f} s{changed}{failed}"
