"""Nodes that share a model, for tests: described, not owned."""

from __future__ import annotations

from typing import Any, Literal

from moehost import settings
from moehost.hardware import Node
from moehost.sharing import Share
from moehost.worker import Link, Worker

NETWORK = "10.0.0.0/24"


def rpc(*workers: str, **more: Any) -> dict[str, Any]:
    """The setting of a service that these hosts have layers of."""
    named = [{"host": name, "address": f"10.0.0.{n}"} for n, name in enumerate(workers, 2)]
    return {"network": NETWORK, "address": "10.0.0.1", "workers": named, **more}


def main_node(*workers: str, service: dict[str, Any] | None = None, **more: Any) -> settings.Node:
    """A node whose service `qwen` has layers on these hosts."""
    model = {"name": "m", "source": "file:///srv/m.gguf"}
    shared = {"name": "qwen", "model": model, "placement": "rpc", "rpc": rpc(*workers), **(service or {})}
    return settings.read({"engine": {"rpc": True}, "services": [shared]} | more)


def worker_node(**more: Any) -> settings.Node:
    """A node that only holds layers."""
    return settings.read({"engine": {"rpc": True}, **more})


def worker(
    node: Node,
    name: str = "epyc2",
    number: int = 2,
    link: Link | str = "10GbE",
    memory: Literal["auto", "cards", "ram"] = "auto",
) -> Worker:
    """A worker with what this machine has."""
    return Worker(name, f"10.0.0.{number}:50052", node, Link.of(link) if isinstance(link, str) else link, memory)


SHARE = Share("qwen", "epyc1", "10.0.0.1", "epyc2", "10.0.0.2", 50052, "auto", False)
