"""A node's table of the packet filter: whether there is one, which ports it guards for whom, who may not get out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moehost import container
from moehost.settings import Node, Service
from moehost.sharing import NOBODY, Peers

# Accounts whose programs answer, and start no connection but to this machine. Those that download are not among them.
ACCOUNTS = ("moehost",)


@dataclass(frozen=True)
class Seen:
    """What a node says of itself.

    + accounts: number of each of ACCOUNTS that is there
    + ssh_ports: TCP ports on which SSH is served
    + client: where the deploy's own SSH connection comes from, as the node sees it; None without such a connection
    """

    accounts: Mapping[str, int]
    ssh_ports: tuple[int, ...]
    client: ipaddress.IPv4Address | ipaddress.IPv6Address | None


@dataclass(frozen=True)
class Door:
    """TCP ports, and who gets in there: nobody else does.

    + what: what listens there, for a comment
    + sources: matches of nftables, one of which must hold; none for a door that stays shut
    """

    what: str
    ports: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def match(self) -> str:
        """The ports as a match of nftables."""
        return f"tcp dport {_set(self.ports)}"


def parse(texts: Mapping[str, str]) -> Seen:
    """What a node's texts say (the fact `Access`)."""
    accounts = [line.split(":") for line in texts["accounts"].splitlines()]
    listening = re.findall(r"^LISTEN +\d+ +\d+ +\S+:(\d+) ", texts["listening"], re.MULTILINE)
    sockets = re.findall(r":(\d+) \(Stream\)", texts["sockets"])
    words = texts["connection"].split()
    own = words[3:4] if len(words) == 4 and words[3].isdecimal() else []
    ports = sorted({int(each) for each in (*listening, *sockets, *own)})
    return Seen({name: int(number) for name, number in accounts}, tuple(ports), _address(words[0] if words else ""))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_needed(node: Node, peers: Peers = NOBODY) -> bool:
    """Whether a node has a table: not where everything is on loopback and nothing else is to be closed."""
    if node.firewall.policy == "services":
        return bool(node.gateway or node.router or peers.doors) or any(
            not each.is_on_loopback for each in node.services
        )
    return node.firewall.policy == "closed"


def refusal(node: Node, seen: Seen) -> str | None:
    """Why these rules would certainly lock this deploy out, or None. Loopback is never filtered."""
    wish = node.firewall
    if wish.policy != "closed" or not wish.ssh_from or seen.client is None or seen.client.is_loopback:
        return None
    if any(seen.client in ipaddress.ip_network(each) for each in wish.ssh_from):
        return None
    return (
        f"firewall.ssh_from: this deploy's own SSH connection comes from {seen.client}, which is in none of "
        f"{', '.join(wish.ssh_from)}; add its network"
    )


def values(node: Node, seen: Seen, peers: Peers = NOBODY) -> dict[str, Any]:
    """What the template `firewall/rules.nft.j2` is rendered with."""
    wish = node.firewall
    is_closed = wish.policy == "closed"
    everybody = ("",)
    others = []
    if is_closed and seen.ssh_ports:
        others.append(Door("SSH", seen.ssh_ports, _sources(wish.ssh_from) if wish.ssh_from else everybody))
    if wish.open_ports:
        others.append(Door("open_ports", tuple(sorted(wish.open_ports)), everybody))
    accounts = sorted(seen.accounts.items())
    if node.has_containers:
        accounts.append(("the server in a container", container.USER))
    return {
        "is_closed": is_closed,
        "guarded": list(_guarded(node, peers)),
        "calls": [f"ip daddr {address} tcp dport {port}" for address, port in peers.calls],
        "others": others,
        "accounts": ", ".join(f"{name} ({number})" for name, number in accounts),
        "account_set": _set([number for _, number in accounts]) if accounts else "",
    }


def _guarded(node: Node, peers: Peers) -> Iterable[Door]:
    """The ports of moehost's own: whoever they are not for is dropped, whatever else is open."""
    for port, address in peers.doors:
        yield Door(f"layers of a model of {address}, which alone gets in", (port,), _sources([address]))
    if node.gateway:
        yield Door("the gateway", (node.gateway.port,), _sources(node.gateway.allow_from))
    if node.router:
        yield Door("the router", (node.router.port,), _sources(node.router.allow_from))
    opened = tuple(each.port for each in node.services if not each.is_on_loopback)
    if opened:
        yield Door("services with a host beyond loopback", opened, _sources(node.firewall.allow_from))
    inside = [each.port for each in node.services if each.is_on_loopback]
    if node.metrics:
        inside += [node.metrics.port, *([node.metrics.prometheus_port] if node.metrics.prometheus else [])]
    if inside:
        yield Door("what is on loopback only", tuple(inside), ())


def _sources(networks: Iterable[str]) -> tuple[str, ...]:
    """Matches of nftables for these networks, one for each version of IP."""
    parsed = [ipaddress.ip_network(each) for each in networks]
    v4 = ipaddress.collapse_addresses(each for each in parsed if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in parsed if isinstance(each, ipaddress.IPv6Network))
    matches = {"ip": [str(each) for each in v4], "ip6": [str(each) for each in v6]}
    # A set has no room for all addresses of a version.
    return tuple(
        f"meta nfproto ipv{version[2:] or 4} " if found[0].endswith("/0") else f"{version} saddr {_set(found)} "
        for version, found in matches.items()
        if found
    )


def _set(elements: Iterable[object]) -> str:
    return f"{{ {', '.join(str(each) for each in elements)} }}"


def addresses(node: Node, service: Service) -> tuple[str, ...]:
    """Whom a service may exchange packets with, as systemd's `IPAddressAllow=` has it.

    Empty where nothing is filtered.
    """
    address = ipaddress.ip_address(service.host)
    workers = [each.address for each in service.rpc.workers] if service.rpc else []
    if address.is_loopback:
        return ("localhost", *workers)
    if node.firewall.policy == "off":
        return ()
    # The machine asks its own server by the address that it listens on.
    own = [] if address.is_unspecified else [str(address)]
    return ("localhost", *own, *node.firewall.allow_from, *workers)
