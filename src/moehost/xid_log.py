"""Lines that NVIDIA's driver writes into the kernel's log when something is wrong with a card (Xid).

Standard library only, as it runs on the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE = re.compile(
    r"^(?P<time_s>\d{9,}[.]\d+)?.*?NVRM: Xid \(?(?:PCI:)?(?P<bus>[\w:.]+)\)?: (?P<number>\d+), ?(?P<text>.*)"
)


@dataclass(frozen=True)
class Line:
    """One line. `time_s` is None where the log has no clock."""

    number: int
    bus: str
    text: str
    time_s: float | None


def lines(text: str) -> Iterator[Line]:
    """The lines in a log, in its order; `journalctl --output short-unix` and dmesg are both read."""
    for line in text.splitlines():
        if found := LINE.match(line):
            time_s = float(found["time_s"]) if found["time_s"] else None
            yield Line(int(found["number"]), found["bus"].lower(), found["text"], time_s)
