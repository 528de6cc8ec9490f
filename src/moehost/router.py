"""Which nodes a router stands before, and which of them serves what."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moehost import keys
from moehost.gateway import ASKED
from moehost.results import label
from moehost.settings import Node
from moehost.settings_access import PRIVATE, Router

# Seconds: for a request's head, for its body, for a connection without requests, for the next piece of an answer.
HEADER_S, BODY_S, IDLE_S, ANSWER_S = 10, 120, 120, 7200
MIB = 1 << 20


class KeyFileError(ValueError):
    """Why a node key can't be used; one line."""


@dataclass(frozen=True)
class Server:
    """A service of a node, as the router asks it.

    + node: name of the host in the inventory
    + label: the same in HAProxy's words
    + slots: requests that it answers at once
    + has_own_authority: whether its gateway's certificate is of an authority of the node's own
    """

    node: str
    label: str
    host: str
    port: int
    slots: int
    has_own_authority: bool

    @property
    def address(self) -> str:
        """Where its gateway listens."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def verified_name(self) -> str | None:
        """The name that its certificate must be for; None for an address, by which nothing is looked up."""
        return None if _is_address(self.host) else self.host


@dataclass(frozen=True)
class Model:
    """A name that users ask for, and who serves it."""

    name: str
    servers: tuple[Server, ...]

    @property
    def patience(self) -> int:
        """How many requests may wait for each node, on average, while a conversation still waits for its own."""
        return max((each.slots for each in self.servers), default=0)


def models(wish: Router, nodes: Mapping[str, Node]) -> list[Model]:
    """
    The models of all nodes by name, in order; services of one name are the same model.

    + nodes: settings of the hosts in `router.nodes` that are right
    """
    found: dict[str, list[Server]] = {}
    for name in wish.nodes:
        node = nodes.get(name)
        if node is None or node.gateway is None:
            continue
        gateway = node.gateway
        for service in node.services:
            server = Server(
                name, label(name), gateway.host, gateway.port, service.parallel, gateway.certificate_file is None
            )
            found.setdefault(service.name, []).append(server)
    return [Model(name, tuple(servers)) for name, servers in found.items()]


def mistakes(host: str, wish: Router, hosts: Iterable[str], nodes: Mapping[str, Node]) -> list[str]:
    """
    What is wrong with `router.nodes`, a line each.

    + host: the router's own name
    + hosts: all hosts of the inventory
    + nodes: settings of those that are right
    """
    hosts, lines = list(hosts), []
    for name in wish.nodes:
        if name not in hosts:
            lines.append(f"router.nodes: {name!r} is no host of the inventory; it has {', '.join(hosts)}")
        elif name in nodes and nodes[name].gateway is None:
            lines.append(f"router.nodes: {name} has no gateway; write gateway: {{'host': ...}} into its settings")
        elif name in nodes and not nodes[name].services:
            lines.append(f"router.nodes: {name} has no service; write one into its settings")
    labels: dict[str, str] = {}
    for name in wish.nodes:
        if (other := labels.setdefault(label(name), name)) != name:
            lines.append(f"router.nodes: {name} and {other} are one name in HAProxy's words; rename one")
    served: dict[str, tuple[str, str]] = {}
    for name in wish.nodes:
        for service in nodes[name].services if name in nodes else []:
            first, model = served.setdefault(service.name, (name, service.model.name))
            if model != service.model.name:
                lines.append(
                    f"router.nodes: {service.name!r} is {model} on {first} and {service.model.name} on {name}; "
                    "services of one name must serve one model"
                )
    if not lines and not models(wish, nodes):
        lines.append(f"router.nodes: the settings of no node are right, so {host} has nothing to stand before")
    return lines


def node_key(path: str) -> str:
    """The key by which nodes know the router, from its file; raises KeyFileError."""
    try:
        text = keys.service_keys(Path(path).expanduser().read_text(), f"router.node_key_file: {path}")
    except keys.KeysError as error:
        raise KeyFileError("; ".join(error.lines)) from None
    except (OSError, UnicodeDecodeError):
        raise KeyFileError(
            f"router.node_key_file: {path} can't be read; make it: umask 077; openssl rand -hex 32 >{path}"
        ) from None
    if text.count("\n") != 1:
        raise KeyFileError(f"router.node_key_file: {path} has several keys; leave one")
    return text.strip()


def node_keys(host: str, nodes: Mapping[str, Node]) -> str | None:
    """
    What a node's gateway is told of the routers that stand before it, None without any. Raises KeyFileError.

    + host: the node
    + nodes: settings of all hosts that are right
    """
    wishes = [each.router for each in nodes.values() if each.router and host in each.router.nodes]
    found = dict.fromkeys(node_key(each.node_key_file) for each in wishes)
    return "".join(f"router {key} -\n" for key in found) or None


def offered(names: Iterable[str]) -> list[list[str]]:
    """The paths that may be asked: without a model's name, and with each one before it."""
    return [[f"{prefix}/{each}" for each in ASKED] for prefix in ("", *(f"/{name}" for name in names))]


def addresses(wish: Router, found: Iterable[Model]) -> list[str]:
    """Whom the router exchanges packets with: this machine, who may connect, private networks, nodes elsewhere."""
    hosts = [server.host for model in found for server in model.servers]
    return list(dict.fromkeys(["localhost", *wish.allow_from, *PRIVATE, *filter(_is_address, hosts)]))


def certificate_name(host: str) -> str:
    """The name or address in a certificate, as OpenSSL spells it."""
    return f"{'IP' if _is_address(host) else 'DNS'}:{host}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
