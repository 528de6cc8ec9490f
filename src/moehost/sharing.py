"""Which nodes of an inventory work for which: what a worker serves, whom it lets in, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moehost.engine import Dialect
from moehost.settings import Node


@dataclass(frozen=True)
class Share:
    """A worker's part in one service of another node.

    + main, main_address: the node that has the service, in the inventory and in the private network
    + worker, address, port: the node that holds layers, and where it listens
    """

    service: str
    main: str
    main_address: str
    worker: str
    address: str
    port: int
    memory: Literal["auto", "cards", "ram"]
    cache: bool
    threads: int | None = None

    @property
    def unit(self) -> str:
        """Name of the worker's systemd unit."""
        return f"moehost-rpc-{self.service}.service"

    def command_line(self, dialect: Dialect, cards: int, cores: int) -> list[str]:
        """The arguments of rpc-server on a worker with this many cards and cores."""
        names = [f"CUDA{index}" for index in range(cards)] if self.memory != "ram" else []
        # ik_llama.cpp offers its CPU only where it is told so.
        cpu = ["-cpu"] if dialect == "ik" and not names else []
        listens = ["-H", self.address, "-p", str(self.port), "-t", str(self.threads or cores)]
        return [*listens, *cpu, "-d", ",".join(names or ["CPU"]), *(["-c"] if self.cache else [])]


@dataclass(frozen=True)
class Peers:
    """Whom a node's packet filter knows by address.

    + doors: port and address of each node that may reach a worker here
    + calls: address and port of each worker that services here start connections to
    """

    doors: tuple[tuple[int, str], ...] = ()
    calls: tuple[tuple[str, int], ...] = ()


NOBODY = Peers()


def shares(nodes: Mapping[str, Node]) -> list[Share]:
    """All parts that nodes have in services of others."""
    return [
        Share(service.name, main, rpc.address, each.host, each.address, rpc.port, rpc.memory, rpc.cache, rpc.threads)
        for main, node in nodes.items()
        for service in node.services
        if (rpc := service.rpc)
        for each in rpc.workers
    ]


def peers(found: list[Share], host: str) -> Peers:
    """Whom the filter of this host knows."""
    return Peers(
        doors=tuple((each.port, each.main_address) for each in found if each.worker == host),
        calls=tuple((each.address, each.port) for each in found if each.main == host),
    )


def problems(nodes: Mapping[str, Node], host: str) -> Iterator[str]:
    """What of the settings of this host does not fit to those of others, a line each."""
    for index, service in enumerate(nodes[host].services):
        for number, worker in enumerate(service.rpc.workers if service.rpc else []):
            where = f"services[{index}].rpc.workers[{number}].host"
            if worker.host == host:
                yield f"{where}: {host} is this node itself, whose memory the planner uses anyway"
            elif worker.host not in nodes:
                yield f"{where}: {worker.host} is no host of the inventory with right settings"
            else:
                yield from _of_pair(where, nodes[host], worker.host, nodes[worker.host])
    taken: dict[int | str, Share] = {}
    for share in shares(nodes):
        if share.worker != host:
            continue
        for key in (share.port, share.service):
            if (other := taken.setdefault(key, share)) is not share:
                yield (
                    f"rpc: {share.service} of {share.main} and {other.service} of {other.main} both want {key} here; "
                    "give each service its own name and rpc.port"
                )
        if share.port in nodes[host].ports:
            yield f"rpc: {share.service} of {share.main} wants port {share.port}, which is taken here; choose another"


def _of_pair(where: str, main: Node, name: str, worker: Node) -> Iterator[str]:
    if worker.firewall.policy == "off":
        yield (
            f"{where}: {name} has firewall.policy 'off', and a worker must be reached by this node alone; write "
            "'services' or 'closed' there"
        )
    if not worker.engine.rpc:
        yield f"{where}: the engine of {name} has no RPC; write engine: {{'rpc': True}} there"
    ours, theirs = (
        (each.engine.source, each.engine.commit if each.engine.source == "git" else "") for each in (main, worker)
    )
    if ours != theirs:
        yield f"{where}: {name} has another engine ({' '.join(theirs).strip()}, here {' '.join(ours).strip()})"


def identity(build: Mapping[str, Any]) -> str:
    """What two builds of an engine must have in common to talk to each other, from their build.json.

    The protocol carries numbers of operations and layouts of structures, which any commit may change; processor and
    cards may differ.
    """
    if build.get("source") == "package":
        backend, sha256 = build.get("backend", "no RPC"), str(build.get("sha256", ""))[:12]
        return f"llama.cpp {build.get('package')} ({sha256}), RPC {backend}"
    return f"ik_llama.cpp {build.get('commit')}"
