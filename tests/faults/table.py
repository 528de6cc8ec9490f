"""The drill's table: one row for each fault, from all suites that cause some, as docs/reliability.md shows it."""

import fcntl
from pathlib import Path

from tests.faults.elsewhere import ELSEWHERE
from tests.fixtures.node import ROOT

PATH = ROOT / ".sandbox/faults-table.md"
HEAD = "| fault | what must come | what came | s |\n| --- | --- | --- | ---: |\n"


def expected() -> dict[str, str]:
    """What must come of each fault, by its title, in the order of the table."""
    from tests.faults import engines, machines, models, packages, rooms, services

    found = {}
    for module in (packages, rooms, models, services, machines, engines):
        found |= {each.title: each.expected for each in module.FAULTS}
    return found | ELSEWHERE


def rows(text: str) -> dict[str, tuple[str, str, str]]:
    """The rows of a table, by title: what must come, what came, seconds."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] != "fault" and not cells[0].startswith("---"):
            found[cells[0]] = (cells[1], cells[2], cells[3])
    return found


def record(title: str, seen: str, seconds: float, path: Path = PATH) -> None:
    """Put a row into the table, or a newer one in the place of it; several suites may do so at the same time."""
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = expected()
        assert title in known and "|" not in seen, (title, seen)
        there = rows(path.read_text()) if path.exists() else {}
        there[title] = (known[title], seen, f"{seconds:.0f}")
        lines = [f"| {each} | {' | '.join(there[each])} |\n" for each in known if each in there]
        path.write_text(HEAD + "".join(lines))
