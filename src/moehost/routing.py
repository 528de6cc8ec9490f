"""The routers of an inventory, as they are asked from this computer: who gets requests, and who gets none."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moehost import settings
from moehost.results import label
from moehost.rolling import RouterError
from moehost.settings_access import Router
from moehost.terminal import ask_hosts, pyinfra, reason

FACT = "roles.router.facts.Balance"
DEPLOY = "roles/router/turn.py"
# How long a drain waits for requests to end, and how long a node that comes back is waited for, seconds.
WAIT_S, WELL_S = 3600, 60


@dataclass(frozen=True)
class Seen:
    """A router as it says of itself: `nodes` by their names in the inventory, `models`, both as it has them."""

    nodes: dict[str, dict[str, Any]]
    models: dict[str, dict[str, int]]
    workers: int

    @property
    def drained(self) -> list[str]:
        """The nodes that get no new requests."""
        return [name for name, node in self.nodes.items() if node["drained_until"]]


class Routers:
    """All routers of an inventory.

    + inventory: where their hosts are looked up
    + wishes: the settings of each, by its host
    """

    def __init__(self, inventory: str, wishes: Mapping[str, Router]) -> None:
        self._inventory, self.wishes = inventory, dict(wishes)

    def before(self, nodes: Collection[str]) -> dict[str, list[str]]:
        """Those that stand before one of these nodes, and which of them."""
        found = {host: [name for name in nodes if name in wish.nodes] for host, wish in self.wishes.items()}
        return {host: names for host, names in found.items() if names}

    def drain(self, nodes: Sequence[str], lease_minutes: int | None = None, wait_s: float = WAIT_S) -> None:
        """Send these nodes no new requests, and wait until they have none; again, it renews the lease.

        Raises RouterError.
        """
        for host, names in self.before(nodes).items():
            minutes = lease_minutes or self.wishes[host].drain_minutes
            self._turn(host, names, do="drain", lease_s=minutes * 60, wait_s=wait_s)

    def ready(self, nodes: Sequence[str], wait_s: float = WELL_S) -> None:
        """Send these nodes requests again, as soon as they are well. Raises RouterError."""
        for host, names in self.before(nodes).items():
            self._turn(host, names, do="ready", lease_s=0, wait_s=wait_s)

    def drained(self) -> list[str]:
        """The nodes that get no new requests. Raises RouterError."""
        return [name for seen in self.seen().values() for name in seen.drained]

    def seen(self) -> dict[str, Seen]:
        """What each router says of itself. Raises RouterError."""
        if not self.wishes:
            return {}
        answers, reasons = ask_hosts(self.wishes, self._inventory, FACT)
        found = {}
        for host, wish in self.wishes.items():
            texts = answers.get(host) or {}
            try:
                said = json.loads(texts.get("status") or "")
            except ValueError:
                state = texts.get("state", "").strip()
                why = reasons.get(host) or (f"its router is {state}" if state else "it gave no answer")
                raise RouterError(f"{host}: can't be asked: {why}") from None
            names = {label(name): name for name in wish.nodes}
            nodes = {names[each]: node for each, node in said["nodes"].items() if each in names}
            found[host] = Seen(nodes, said["models"], said["workers"])
        return found

    def _turn(self, host: str, nodes: list[str], **order: Any) -> None:
        data = {"labels": ",".join(map(label, nodes)), **order}
        words = [word for key, value in data.items() for word in ("--data", f"x_{key}={value}")]
        done = pyinfra(self._inventory, "--limit", host, DEPLOY, *words, "-y")
        if done.returncode:
            raise RouterError(f"{host}: {order['do']} of {', '.join(nodes)}: {reason(done.stderr)}")


def routers(inventory: str, hosts: Mapping[str, Mapping[str, Any]]) -> Routers:
    """The routers among hosts whose settings are right.

    + inventory: where they are looked up
    + hosts: data of all hosts of the inventory
    """
    wishes = {}
    for name, data in hosts.items():
        if data.get("router"):
            try:
                node = settings.read(data)
            except settings.SettingsError:
                continue
            if node.router:
                wishes[name] = node.router
    return Routers(inventory, wishes)
