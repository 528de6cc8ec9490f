"""How a node is: what `roles.doctor.Doctor` reads becomes findings, each with the command that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moehost import cdi, driver
from moehost.doctor import cards, disks, memory, models, services, system, tuned, xid
from moehost.finding import Finding, Level
from moehost.settings import Node

SEVERITY: tuple[Level, ...] = ("ok", "warning", "error")


def examine(texts: Mapping[str, str], node: Node) -> list[Finding]:
    """What there is to say of a node, by the texts of the fact `Doctor` and the node's settings."""
    condition = part(texts, "condition")
    found = [
        *system.findings(condition),
        *disks.findings(condition, node),
        *services.findings(condition, node),
        *models.findings(condition),
    ]
    # A container shows the kernel, the firmware and the clock of the machine that it is in: not this node's.
    if not system.container(condition):
        found += system.kernel_findings(condition, node)
        found += memory.findings(part(texts, "machine"), condition, node)
        found += tuned.findings(part(texts, "tuning"), node)
        found += xid.findings(condition)
    if node.gpu != "off":
        # What waits for a reboot is said above, and since when.
        found += [each for each in driver.findings(driver.parse(part(texts, "driver"))) if each.area != "reboot"]
        found += cards.findings(condition, node)
    if node.has_container_toolkit:
        found += cdi.findings(cdi.parse(part(texts, "containers")))
    return found


def part(texts: Mapping[str, str], name: str) -> dict[str, str]:
    """The texts of one of the facts that were read together, by its own keys."""
    return {key.removeprefix(f"{name}."): text for key, text in texts.items() if key.startswith(f"{name}.")}


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the worst of them."""
    return max((each.level for each in findings), key=SEVERITY.index, default="ok")
