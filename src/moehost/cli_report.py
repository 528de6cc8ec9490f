"""`moehost report`: two benchmarks compared, and the report of one made again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moehost import fingerprint, results
from moehost.redact import redact
from moehost.runs import RunsError, Session
from moehost.terminal import say, stop

if TYPE_CHECKING:
    from moehost.comparison import Comparison
    from moehost.daily_use import Needs

# Those that measure with scipy and matplotlib take a second to import, and the other commands don't need them.


@click.group()
def report() -> None:
    """Compare benchmarks, and make their reports."""


@report.command()
@click.argument("before")
@click.argument("after")
@click.option("--tolerance", default=0.03, show_default=True, help="Relative difference that does not matter.")
@click.option("--json", "as_json", is_flag=True, help="The comparison for programs.")
def compare(before: str, after: str, tolerance: float, as_json: bool) -> None:
    """Say whether AFTER is faster or slower than BEFORE: folders of `moehost bench`, or their runs.jsonl.

    Only prompt lengths that both have measured are compared. Ends with 0 whatever the verdict is, with 2
    where the two can't be compared. docs/statistics.md says what the intervals mean.

    \b
    Example:
        moehost report compare results/epyc/2026-11-01 results/epyc/2026-11-08
        moehost report compare A B --tolerance 0.05 --json | jq -r .verdict
    """
    from moehost import comparison

    was, now = read(before), read(after)
    try:
        found = comparison.compare(was, now, tolerance)
    except comparison.ComparisonError as error:
        stop(f"{before}, {after}: {error}")
    if as_json:
        click.echo(json.dumps({**asdict(found), "verdict": found.verdict}, indent=2))
        return
    for line in [*since(was, now), *lines(found)]:
        click.echo(line)


@report.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def render(folder: Path) -> None:
    """Write summary.json, report.html, report.md and plots/ into FOLDER anew, from its runs.jsonl.

    What the owner needs of a machine is taken from the summary that is there.

    \b
    Example:
        moehost report render results/epyc/2026-11-08
    """
    from moehost import report as reports

    session = read(str(folder))
    needs = _needs(folder / reports.SUMMARY)
    try:
        reports.write(session, folder, needs)
    except OSError as error:
        stop(f"{folder}: {error.strerror}; give a folder that you may write to", code=1)
    click.echo(folder / reports.PAGE)


def read(where: str) -> Session:
    """The benchmark of a folder or a file; ends where there is none, or none that can be read."""
    try:
        return results.load(Path(where))
    except RunsError as error:
        stop(str(error))


def since(before: Session, after: Session) -> Iterable[str]:
    """What has changed between two benchmarks, but for the speed: a machine's parts and software, and no names."""
    for line in fingerprint.changes(redact(before.fingerprint), redact(after.fingerprint)):
        yield f"since then {line}"


def lines(found: Comparison) -> Iterable[str]:
    """A comparison for people."""
    yield f"{'':16} {'after / before':>14}   95 %"
    for name, ratio in (("prompt", found.prompt), ("decode", found.decode)):
        low, high = ratio.interval
        yield f"{name:16} {ratio.ratio:14.3f}   {low:.3f} to {high:.3f}   {ratio.verdict}"
        for tokens, each in ratio.by_length.items():
            yield f"  {tokens:>7,} tokens {each:14.3f}"
    yield (
        f"{found.verdict} ({found.blocks_before} blocks before, {found.blocks_after} after, "
        f"tolerance {found.tolerance:.0%})"
    )


def _needs(path: Path) -> Needs | None:
    """The needs of an earlier summary; None for the usual ones."""
    from moehost.daily_use import Needs

    try:
        return Needs(**json.loads(path.read_text())["daily_use"]["needs"])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError):
        say(f"{path}: says nothing of needs; the usual ones are taken")
        return None
