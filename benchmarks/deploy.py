"""How long deploys take, beside ansible-core: `python -m benchmarks.deploy --help`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import nodes as containers
from benchmarks import values
from benchmarks.figures import ANSIBLE, LEAN, MOEHOST, Figures, FiguresError, Row, What, parse
from benchmarks.nodes import Access, Counters, Node
from benchmarks.tools import Ansible, Calendar, Moehost, Tool, ToolError, disconnected
from inventory import hosts
from moehost import os_release, sandbox, settings
from moehost.terminal import FAILED, say, stop

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
# The settings of the default node.
DEFAULT: dict[str, Any] = hosts.sandbox[0][1]
# Podman cleans up behind each question to a node, for a moment and with a core.
SETTLE_S = 5.0
CALENDARS: tuple[Calendar, Calendar] = ("monthly", "weekly")


class Counts(click.ParamType):
    """Numbers of nodes with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers, each once."""
        words = str(value).split(",")
        if not all(word.strip().isdigit() and 1 <= int(word) <= 64 for word in words):
            self.fail(f"{value!r}: write numbers from 1 to 64 with commas between them, e.g. 1,4,16", param, ctx)
        return sorted({int(word) for word in words})


@click.command()
@click.option("--nodes", "counts", type=Counts(), default="1,4,16", show_default=True, help="How many at once.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="How often nodes are made.")
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True, help="Later runs in each round.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Raw figures (JSON).")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="The page that is made of them.")
@click.option("--only-report", is_flag=True, help="Measure nothing: make the page of the figures in --out.")
def main(
    counts: list[int], rounds: int, repetitions: int, out: Path | None, report: Path | None, only_report: bool
) -> None:
    """Provision fresh nodes in containers with deploy.py and with an Ansible playbook, over SSH, in turns.

    Writes docs/performance.json and docs/performance.md where --out and --report name no others. Ends with 1 when
    a run does not do what it should, 2 on bad input.

    \b
    Example:
        python -m benchmarks.deploy
        python -m benchmarks.deploy --nodes 1,2 --rounds 1 --repetitions 2 --out /tmp/f.json --report /tmp/f.md
        python -m benchmarks.deploy --only-report
    """
    out, report = out or DOCS / "performance.json", report or DOCS / "performance.md"
    try:
        if not only_report:
            for figures in measured(counts, rounds, repetitions):
                out.write_text(figures.to_json())
        report.write_text(page(parse(out)))
    except FiguresError as error:
        stop(str(error))
    except (ToolError, sandbox.SandboxError, OSError) as error:
        stop(*str(error).splitlines(), code=FAILED)
    say(f"wrote {report}")


def page(figures: Figures) -> str:
    """The page about these figures."""
    loader = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Markdown)
    )
    return loader.get_template("performance.md.j2").render(figures=figures)


def measured(counts: list[int], rounds: int, repetitions: int) -> Iterator[Figures]:
    """Measure: all figures until now, each time that there is one more, so that a run that is ended loses none.

    Nodes are there only meanwhile. Raises ToolError, SandboxError and OSError.
    """
    rows: list[Row] = []
    date, before, with_what = datetime.now(UTC).strftime("%Y-%m-%d"), machine(), software()
    with tempfile.TemporaryDirectory(prefix="moehost-") as folder:
        access = Access(Path(folder))
        public_key = access.make()
        try:
            for count in counts:
                for row in _at_once(count, rounds, repetitions, access, public_key):
                    rows.append(row)
                    yield Figures(date, before, with_what, tuple(rows))
        finally:
            _ended(access)


def _ended(access: Access) -> None:
    disconnected(access)
    containers.remove()


def _at_once(count: int, rounds: int, repetitions: int, access: Access, public_key: str) -> Iterator[Row]:
    """The rows with so many nodes. Only one tool has nodes at a time, so those of the other take nothing from it."""
    brought: dict[str, set[str]] = {}
    for number in range(rounds):
        for name in _in_turns([MOEHOST, ANSIBLE], number):
            say(f"{count} fresh nodes for {name}, round {number + 1} of {rounds}")
            there = containers.start([f"{containers.PREFIX}-{each + 1}" for each in range(count)], public_key)
            access.know(there)
            tool, *others = _tools(name, access, there[0])
            yield _row(tool, there, "first", number, CALENDARS[0])
            brought[name] = there[0].brought
            for each in range(repetitions):
                now, then = CALENDARS[each % 2], CALENDARS[(each + 1) % 2]
                yield _row(tool, there, "again", number * repetitions + each, now)
                yield _row(tool, there, "one change", number * repetitions + each, then)
            for other in others:
                yield _row(other, there, "again", number * repetitions, CALENDARS[repetitions % 2])
            _ended(access)
        _compared(brought)


def _tools(name: str, access: Access, node: Node) -> list[Tool]:
    """A tool, and variants of it that are tried on the same nodes.

    + node: one of them
    """
    if name == MOEHOST:
        return [Moehost(access, DEFAULT)]
    described = settings.read(DEFAULT)
    told = values.values(described, **values.of_node(node), file=values.model_file(described))
    return [Ansible(access, told), Ansible(access, told, LEAN, "modules")]


def _in_turns(tools: list[str], number: int) -> list[str]:
    """Whoever was first in a round is last in the next."""
    return tools if number % 2 == 0 else tools[::-1]


def _row(tool: Tool, there: list[Node], what: What, number: int, calendar: Calendar) -> Row:
    before = [each.counters for each in there]
    time.sleep(SETTLE_S)
    run = tool.deploy(there, calendar)
    spent = [now.counters - past for now, past in zip(there, before, strict=True)]
    if (run.changed == 0) != (what == "again"):
        raise ToolError(f"{tool.name}, {len(there)} nodes, {what}: changed {run.changed}")
    sessions = _mean(spent, "sessions")
    commands = sessions if run.commands is None else run.commands
    say(f"{tool.name}, {what}: {run.seconds:.2f} s; for each node {commands:.0f} commands, {sessions:.0f} sessions")
    return Row(
        tool.name,
        len(there),
        what,
        number,
        round(run.seconds, 3),
        run.changed,
        round(commands, 1),
        sessions,
        *(_mean(spent, key) for key in ("received_bytes", "sent_bytes")),
    )


def _mean(spent: list[Counters], key: str) -> float:
    return round(fmean(getattr(each, key) for each in spent), 1)


# A key is the node's own, the unit has a mark of the tool's (its text without it is compared), moehost's plan names
# the engine's build, and what comes then is what moehost alone remembers.
OWN = re.compile(r"/(api-keys|llama-server-tiny[.]service|plan[.]json|headers[.]json|tensors[.]json|[.]incoming/.*)$")


def _compared(brought: dict[str, set[str]]) -> None:
    """Both tools have brought the same, but for what is OWN. Raises ToolError."""
    differ = [line for line in sorted(brought[MOEHOST] ^ brought[ANSIBLE]) if not OWN.search(line)]
    if differ:
        raise ToolError("\n".join(["the tools do not bring the same:", *differ]))


def machine() -> dict[str, str]:
    """What this computer is, and how busy it is now."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next(line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    system = os_release.fields(Path("/etc/os-release").read_text())
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{int(memory) / (1 << 20):.0f}",
        "system": system["PRETTY_NAME"],
        "kernel": platform.release(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def software() -> dict[str, str]:
    """What ran."""
    found = {"python": platform.python_version()}
    found |= {each: version(each) for each in ("pyinfra", "paramiko", "ansible-core")}
    found["podman"] = sandbox.run(["podman", "--version"]).stdout.split()[-1]
    found["openssh"] = subprocess.run(["ssh", "-V"], capture_output=True, text=True).stderr.split(",")[0]
    return found


if __name__ == "__main__":
    main()
