"""How the nodes of a fleet are: the fact `roles.fleet.Fleet` and this computer's own files become a row for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from moehost import driver, lock
from moehost.doctor import part, system, tuned
from moehost.doctor import services as units_of
from moehost.rolling import Failure
from moehost.settings import Node

State = Literal["ready", "failed", "drained"]
REBOOT = "systemctl reboot"


@dataclass(frozen=True)
class Serving:
    """A service of a node: `drained` is one that would serve and gets no requests; `says` why it failed."""

    state: State
    says: str | None = None


@dataclass(frozen=True)
class Benched:
    """What the last benchmark of a service found.

    + tok_s: decode, the median of its runs
    + age_s: how long ago it was
    """

    tok_s: float
    age_s: float


@dataclass
class Row:
    """A node in the table; None is what is not known.

    + outcome: `ok`; `failed`, see `failure`; `untouched`, the run stopped before it
    + roles: what the run did, as `pyinfra --json` says it; None without a run
    + reboot: what waits for a reboot
    + drift: what is not as it was locked; None without a lock
    """

    node: str
    outcome: Literal["ok", "failed", "untouched"] = "ok"
    failure: Failure | None = None
    roles: list[dict[str, Any]] | None = None
    services: dict[str, Serving] | None = None
    bench: dict[str, Benched] = field(default_factory=dict)
    reboot: list[str] | None = None
    drift: list[str] | None = None
    duration_s: float | None = None

    @property
    def changed(self) -> list[str]:
        """The roles that changed something."""
        return [each["role"] for each in self.roles or () if each["changed"]]

    def to_json(self) -> dict[str, Any]:
        """The contract of `moehost deploy --json` and `moehost status --json`, for a node (docs/fleet.md)."""
        data = {key: value for key, value in asdict(self).items() if key not in ("node", "failure")}
        return {**data, "failed": asdict(self.failure) if self.failure else None}


def known(row: Row, texts: Mapping[str, str], node: Node, locked: lock.Lock | None, drained: Collection[str]) -> Row:
    """The row with what the node says of itself.

    + texts: of the fact `Fleet`
    + locked: the node's lock on this computer, where there is one
    + drained: the nodes that get no requests
    """
    row.services = services(texts, node, row.node in drained)
    row.reboot = list(reboot(texts, node))
    if locked is not None:
        row.drift = [each.text for each in lock.drifts(locked, lock.of_node(part(texts, "stack")))]
    return row


def services(texts: Mapping[str, str], node: Node, is_drained: bool) -> dict[str, Serving]:
    """The services of the settings, and how each of them is."""
    condition, serving = part(texts, "condition"), part(texts, "serving")
    there = units_of.units(condition["units"])
    answers, cards = _by_unit(serving["answers"]), _by_unit(serving["cards"])
    found = {}
    for service in node.services:
        says = None
        for each in units_of.service_findings(service.unit, there.get(service.unit, {}), condition["journal"]):
            if each.level == "error" or there.get(service.unit, {}).get("ActiveState") != "active":
                says = each.says
                break
        if says is None and answers.get(service.unit) != "200":
            says = f"{service.unit} is active and does not answer (HTTP status {answers.get(service.unit, 'none')})"
        if says is None and service.unit in cards:
            says = f"{service.unit}: {cards[service.unit]}"
        found[service.name] = Serving("failed", says) if says else Serving("drained" if is_drained else "ready")
    return found


def gate(texts: Mapping[str, str], node: Node) -> str | None:
    """Why a node should get no requests yet, None where each service answers, with the engine that was wished."""
    if not node.services:
        return None
    for service in services(texts, node, is_drained=False).values():
        if service.says:
            return service.says
    engine = units_of.engine(part(texts, "condition")["releases"])
    if engine.level != "ok":
        return engine.says
    commit = lock.of_node(part(texts, "stack")).get("engine", {}).get("commit", "none")
    if node.engine.source == "git" and commit != node.engine.commit:
        return f"the engine that serves is of commit {commit}, not {node.engine.commit}"
    return None


def reboot(texts: Mapping[str, str], node: Node) -> Iterator[str]:
    """What waits for a reboot of the node: packages, its tuning, its driver."""
    condition = part(texts, "condition")
    owed = system.reboot(condition)
    if owed.level != "ok":
        yield owed.says
    if system.container(condition):
        return
    yield from (
        each.says for each in tuned.findings(part(texts, "tuning"), node) if (each.fix or "").startswith(REBOOT)
    )
    found = driver.parse(part(texts, "driver"))
    if node.gpu != "off" and found.cards and found.needs_reboot:
        yield "the driver waits for a reboot"


def ordered(rows: Collection[Row]) -> list[Row]:
    """Rows as they are shown: those that failed come last, where an eye ends."""
    return sorted(rows, key=lambda row: ("ok", "untouched", "failed").index(row.outcome))


def _by_unit(text: str) -> dict[str, str]:
    """What is said of each unit last: lines of a unit and a sentence."""
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
