"""What a service finds out about the nodes that are to hold layers of its model."""

from typing import Any

from pyinfra import host, inventory, state
from pyinfra.api.exceptions import PyinfraError

from moehost import settings, sharing, worker
from moehost.hardware import Node, node_from_facts
from moehost.settings import Service
from roles.facts import from_json
from roles.rpc_worker.facts import Answering, Worker


class NotDeployed(Exception):
    """A worker has no engine yet: only the plan of a deploy comes here, if it deploys the worker, too."""


def workers(service: Service, build: dict[str, Any]) -> tuple[worker.Worker, ...]:
    """
    The workers of a service with what each of them has; none where it has no workers.

    They are asked themselves, also where this deploy is limited to other hosts. Raises ValueError for one that can't
    be asked or has another engine, and NotDeployed.

    + build: build.json of the engine here
    """
    if not service.rpc:
        return ()
    nodes = [_node(f"rpc.workers[{n}]", each.host, build) for n, each in enumerate(service.rpc.workers)]
    return worker.of_settings(service.rpc, nodes)


def _node(where: str, name: str, build: dict[str, Any]) -> Node:
    other = inventory.get_host(name, None)
    if other is None:
        raise ValueError(f"{where}: {name} is no host of the inventory")
    try:
        there = other.get_fact(Worker)
    except PyinfraError as error:
        raise ValueError(f"{where}: {name} can't be asked: {error}") from None
    theirs_build = from_json(there["build"])
    if not there["release"] or not theirs_build:
        if not state.is_executing:
            raise NotDeployed(name)
        raise ValueError(f"{where}: {name} has no engine; deploy it, too")
    ours, theirs = sharing.identity(build), sharing.identity(theirs_build)
    if ours != theirs:
        raise ValueError(f"{where}: {name} has the engine {theirs}, this node {ours}; deploy both with the same one")
    texts = Worker.machine(there)
    if settings.read(other.data.dict()).gpu == "off":
        texts |= {"nvidia_smi": ""}
    return node_from_facts(**texts)


def silent(service: Service, found: tuple[worker.Worker, ...]) -> str | None:
    """Why a service can't start: a worker that accepts no connection from here, or an address that is another's."""
    if not found or not service.rpc:
        return None
    answering = host.get_fact(Answering, endpoints=[each.endpoint for each in found])
    for number, each in enumerate(found):
        if each.endpoint not in answering:
            return (
                f"rpc.workers[{number}]: {each.endpoint} ({each.name}) does not answer; deploy it, too, and look at "
                f"`systemctl status moehost-rpc-{service.name}` there"
            )
    return None
