"""What was measured: a row for each run, and what follows from the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

What = Literal["first", "again", "one change"]
MOEHOST, ANSIBLE, LEAN = "moehost", "ansible", "ansible without modules"


class FiguresError(ValueError):
    """Why a file holds no figures, in one line."""


@dataclass(frozen=True)
class Row:
    """One run of a tool.

    + nodes: how many it provisioned at once
    + round: number of the repetition; each tool has one of that number
    + changed: how much it changed, in whatever the tool counts
    + commands: those that a node was given, the mean of all
    + sessions, received_bytes, sent_bytes: what a node counted, the mean of all
    """

    tool: str
    nodes: int
    what: What
    round: int
    seconds: float
    changed: int
    commands: float
    sessions: float
    received_bytes: float
    sent_bytes: float


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the least and the greatest of them."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of values; raises FiguresError where there is none."""
        found = sorted(values)
        if not found:
            raise FiguresError("the benchmark did not come to its end; run it again")
        return cls(median(found), found[0], found[-1])


@dataclass(frozen=True)
class Figures:
    """A benchmark: when and on what, and its rows."""

    date: str
    machine: dict[str, str]
    software: dict[str, str]
    rows: tuple[Row, ...]

    @property
    def counts(self) -> list[int]:
        """The numbers of nodes."""
        return sorted({row.nodes for row in self.rows})

    def of(self, tool: str, nodes: int, what: What) -> dict[int, Row]:
        """The rows of a tool by their rounds."""
        return {row.round: row for row in self.rows if (row.tool, row.nodes, row.what) == (tool, nodes, what)}

    def seconds(self, tool: str, nodes: int, what: What) -> Spread:
        """How long runs took."""
        return Spread.of(row.seconds for row in self.of(tool, nodes, what).values())

    def ratio(self, nodes: int, what: What, other: str = ANSIBLE) -> Spread:
        """How many times as long another tool takes, round by round."""
        ours, theirs = self.of(MOEHOST, nodes, what), self.of(other, nodes, what)
        return Spread.of(theirs[each].seconds / ours[each].seconds for each in ours.keys() & theirs.keys())

    def growth(self, tool: str, what: What) -> float:
        """How many times as long the greatest number of nodes takes as the least."""
        least, *_, greatest = [self.seconds(tool, each, what).median for each in (*self.counts, self.counts[-1])]
        return greatest / least

    def commands(self, tool: str, nodes: int, what: What) -> float:
        """Commands for each node."""
        return fmean(row.commands for row in self.of(tool, nodes, what).values())

    def sessions(self, tool: str, nodes: int, what: What) -> float:
        """Sessions of SSH for each node: one for each command or transfer of files that shares none."""
        return fmean(row.sessions for row in self.of(tool, nodes, what).values())

    def megabytes(self, tool: str, nodes: int, what: What) -> float:
        """What went over the network for each node, both ways, in 10^6 bytes."""
        rows = self.of(tool, nodes, what).values()
        return fmean(row.received_bytes + row.sent_bytes for row in rows) / 1e6

    def to_json(self) -> str:
        """The text that `parse` reads, a line for each row."""
        head = {key: getattr(self, key) for key in ("date", "machine", "software")}
        lines = ",\n  ".join(json.dumps(asdict(row)) for row in self.rows)
        return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n'


def parse(path: Path) -> Figures:
    """The figures in a file; raises FiguresError."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return Figures(**data | {"rows": tuple(Row(**row) for row in data["rows"])})
    except OSError as error:
        raise FiguresError(f"{path}: {error.strerror}; run the benchmark first") from None
    except (ValueError, TypeError, KeyError):
        raise FiguresError(f"{path}: holds no figures of this benchmark; run it again") from None
