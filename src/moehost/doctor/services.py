"""The services, moehost's other units, and the engine's release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moehost import last_words
from moehost.finding import DEPLOY, Finding, Level
from moehost.settings import Node


def findings(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """What there is to say of services and engine."""
    there, journal = units(texts["units"]), texts["journal"]
    for service in node.services:
        yield from service_findings(service.unit, there.pop(service.unit, {}), journal)
    for unit, state in there.items():
        if state.get("ActiveState") == "failed":
            # Without the cards no service starts; of the others the next deploy takes care.
            level: Level = "error" if unit == "moehost-gpu.service" else "warning"
            yield Finding("services", level, f"{unit} has failed{_why(unit, journal)}", _look(unit))
    if node.services:
        yield engine(texts["releases"])


def units(text: str) -> dict[str, dict[str, str]]:
    """Properties of units by their name, from `systemctl show` of several."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n"))
    return {block["Id"]: block for block in blocks if "Id" in block}


def service_findings(unit: str, state: Mapping[str, str], journal: str) -> Iterator[Finding]:
    """Whether a service of the settings is there, serves, and will after a reboot."""
    active, sub = state.get("ActiveState"), state.get("SubState")
    restarts = int(state.get("NRestarts") or 0)
    if not active:
        yield Finding("services", "error", f"{unit} is not on the node", DEPLOY)
    elif active == "failed" or sub == "auto-restart":
        yield Finding("services", "error", f"{unit} does not start{_why(unit, journal)}", _look(unit))
    elif active in ("activating", "reloading"):
        says = f"{unit} is on its way ({sub}) and does not serve yet"
        yield Finding("services", "warning", says, f"journalctl -fu {unit}")
    elif active != "active":
        yield Finding("services", "error", f"{unit} is {active}", f"systemctl start {unit}")
    elif restarts:
        says = f"{unit} serves, but had to be restarted {restarts} time(s) by systemd"
        yield Finding("services", "warning", says, f"journalctl -u {unit} -g 'error|fail|killed' says why")
    else:
        yield Finding("services", "ok", f"{unit} is active")
    if active and state.get("UnitFileState") == "disabled":
        yield Finding("services", "warning", f"{unit} does not start at boot", f"systemctl enable {unit}")


def _look(unit: str) -> str:
    return f"journalctl -u {unit} -n 50 says more; then {DEPLOY}"


def _why(unit: str, journal: str) -> str:
    own = [line.removeprefix(f"{unit} ") for line in journal.splitlines() if line.startswith(f"{unit} ")]
    reason = last_words.why(unit, own)
    return f": {reason}" if reason else ""


def engine(text: str) -> Finding:
    """Which release serves, and whether another one waits to."""
    links = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    current, following = links.get("current"), links.get("next")
    if not current:
        return Finding("engine", "error", "no engine is current", DEPLOY)
    if following and following != current:
        says = f"{following} is there and {current} serves still: the switch is not through, or was gone back from"
        return Finding("engine", "warning", says, DEPLOY)
    return Finding("engine", "ok", f"{current} serves")
