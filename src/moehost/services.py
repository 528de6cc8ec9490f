"""The service of a host that a command is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moehost import settings
from moehost.settings import Service
from moehost.terminal import data_of, host_of, stop


@dataclass(frozen=True)
class Chosen:
    """A service, the settings of its node, and all that the inventory has of the host."""

    host: str
    data: dict[str, Any]
    node: settings.Node
    service: Service


def choose(host: str, name: str | None, inventory: str) -> Chosen:
    """The service of this name of @HOST, or its only one; ends with a line where that is not clear."""
    if not host.startswith("@"):
        stop(f"{host}: write the host as @{host}")
    data = data_of(host, inventory)
    try:
        node = settings.read(data)
    except settings.SettingsError as error:
        stop(*(f"{host}: {line}" for line in error.lines))
    names = [each.name for each in node.services]
    if not names:
        stop(f"{host}: has no service; write one into the inventory, see docs/settings.md")
    if name is None and len(names) > 1:
        stop(f"--service: {host} has {', '.join(names)}; name one of them")
    if name is not None and name not in names:
        stop(f"--service: {host} has no {name!r}; it has {', '.join(names)}")
    return Chosen(host_of(host), data, node, node.services[names.index(name) if name else 0])
