"""What a run did to a host, role by role: the part `hosts` of what `pyinfra ... --json` prints (docs/fleet.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moehost.terminal import FRAME


@dataclass
class Operation:
    """One operation of a host.

    + role: name of the deploy that it belongs to, empty outside of one
    + duration_s: how long it took on this host, without waiting for others; None where it was only planned
    + changed: whether it did something, or would
    + failed: the last line that it said, None where it did not fail
    """

    role: str
    label: str
    duration_s: float | None = None
    changed: bool = False
    failed: str | None = None

    @property
    def title(self) -> str:
        """The operation's name as pyinfra shows it."""
        return " | ".join(filter(None, (self.role, self.label)))


@dataclass
class HostRun:
    """What is known of a host's run.

    + said: lines about the host that were warnings or errors, outside of its operations
    + unfinished: why the run ended before this host was through, None where it did not
    + commands: how many it was given, facts included
    """

    operations: list[Operation] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    has_failed: bool = False
    unfinished: str | None = None
    commands: int = 0

    @property
    def failure(self) -> str | None:
        """Why this host failed, in one line; None where it did not."""
        for each in self.operations:
            if each.failed is not None:
                return f"{each.title}: {each.failed}"
        if self.has_failed:
            first, *more = self.said or ["no reason given"]
            return f"{first} (and {len(more)} more)" if more else first
        return self.unfinished

    def to_json(self) -> dict[str, Any]:
        """The contract."""
        return {"roles": roles(self.operations), "failed": self.failure, "commands": self.commands}


def roles(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """The roles of a host in their order, each with its time, what it changed, and why it failed."""
    by_role: dict[str, list[Operation]] = {}
    for each in operations:
        by_role.setdefault(each.role, []).append(each)
    return [
        {
            "role": role,
            "duration_s": _sum_s(those),
            "changed": [each.label for each in those if each.changed],
            "failed": next((f"{each.label}: {each.failed}" for each in those if each.failed is not None), None),
        }
        for role, those in by_role.items()
    ]


def _sum_s(operations: Iterable[Operation]) -> float | None:
    times_s = [each.duration_s for each in operations if each.duration_s is not None]
    return round(sum(times_s), 3) if times_s else None


def last_line(lines: Iterable[str]) -> str:
    """What an operation that failed said last, with the line that it belongs to, and without pyinfra's own."""
    said = [line.strip() for line in lines if line.strip() and not FRAME.search(line)]
    if not said:
        return "no reason given"
    # As dpkg does: "Errors were encountered while processing:", and below it the names.
    heading = said[-2] if len(said) > 1 and said[-2].endswith(":") else ""
    return f"{heading} {said[-1]}".strip()
