"""What an owner may write of who gets at a node: the gateway, the router before several nodes, the firewall."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from moehost.setting import Settings, matching

# Addresses that no router of the internet passes on (RFC 1918, RFC 4193, RFC 4291).
PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is no network ({error}); write e.g. 192.168.1.0/24 or fd00::/8") from None


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", value):
        raise ValueError(f"{value!r} is no origin; write e.g. https://chat.home.arpa, without a path")
    return value


Network = Annotated[str, AfterValidator(_network)]
Origin = Annotated[str, AfterValidator(_origin)]
HostName = Annotated[
    str, matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|[0-9a-f:]+", "write a host name or an IP address")
]
Port = Annotated[int, Field(ge=1, le=65535)]


class Gateway(Settings):
    """A TLS proxy before the services, for the computers of your network: who has a key gets the API, and no more."""

    host: HostName = Field(description="name or address by which the node is called, which its certificate is for")
    port: Port = Field(443, description="port to listen on")
    certificate_file: str | None = Field(
        None,
        description="file on this computer with the certificate and its chain (PEM); without it the node makes an "
        "authority of its own, whose certificate `moehost keys ca` prints",
    )
    certificate_key_file: str | None = Field(None, description="file on this computer with the certificate's key")
    user_keys_file: str | None = Field(
        None,
        description="file on this computer with a line `NAME KEY` for each user; without it `moehost keys` keeps the "
        "list on the node",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list, description="web pages whose scripts may ask, e.g. `https://chat.home.arpa`; none else"
    )
    max_body_mib: int = Field(64, ge=1, le=4096, description="largest request, MiB")
    allow_from: list[Network] = Field(
        default_factory=lambda: list(PRIVATE), description="networks that may connect; private addresses by default"
    )

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Gateway:
        _require_whole(self.certificate_file, self.certificate_key_file)
        return self


class Router(Settings):
    """A machine before several nodes: users ask it, and it asks a node that serves their model (docs/router.md)."""

    host: HostName = Field(description="name or address by which users call it, which its certificate is for")
    port: Port = Field(443, description="port to listen on")
    nodes: list[str] = Field(
        min_length=1, description="hosts of the inventory whose services it stands before; each has a `gateway`"
    )
    node_key_file: str = Field(
        "~/.config/moehost/router.key",
        description="file on this computer with the key by which nodes know the router; a deploy hands it to both",
    )
    node_ca_file: str | None = Field(
        None,
        description="file on this computer with the authority (PEM) of the certificates that you gave nodes; that of "
        "the system if not given; a node with an authority of its own is known by that",
    )
    certificate_file: str | None = Field(
        None,
        description="file on this computer with the certificate and its chain (PEM); without it the router makes an "
        "authority of its own, whose certificate `moehost keys ca` prints",
    )
    certificate_key_file: str | None = Field(None, description="file on this computer with the certificate's key")
    user_keys_file: str | None = Field(
        None,
        description="file on this computer with a line `NAME KEY` for each user; without it `moehost keys` keeps the "
        "list on the router",
    )
    requests_per_minute: int = Field(120, ge=1, le=100_000, description="requests of a key within a minute, at most")
    concurrent_requests: int = Field(
        16, ge=1, le=10_000, description="requests of a key at the same time, those that wait among them, at most"
    )
    queue_s: int = Field(120, ge=1, le=3600, description="how long a request waits for a free slot, seconds")
    max_body_mib: int = Field(16, ge=1, le=256, description="largest request, MiB; the router reads it as a whole")
    health_interval_s: int = Field(2, ge=1, le=60, description="how often each node is asked whether it is ready")
    drain_minutes: int = Field(
        60, ge=1, le=1440, description="a drained node gets requests again after so long, unless it is renewed"
    )
    allow_from: list[Network] = Field(
        default_factory=lambda: list(PRIVATE), description="networks that may connect; private addresses by default"
    )

    @field_validator("nodes")
    @classmethod
    def _nodes_are_named_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("a node is named twice")
        return value

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Router:
        _require_whole(self.certificate_file, self.certificate_key_file)
        return self


def _require_whole(certificate_file: str | None, certificate_key_file: str | None) -> None:
    if bool(certificate_file) != bool(certificate_key_file):
        raise ValueError("certificate_file and certificate_key_file belong together; write both or none")


class Firewall(Settings):
    """A table of the node's packet filter, beside those of others, which are never touched."""

    policy: Literal["services", "closed", "off"] = Field(
        "services",
        description="`services`: only the ports of moehost's own are guarded, and nothing is installed where all of "
        "them are on loopback; `closed`: whatever is not named here is dropped; `off`: nothing is filtered",
    )
    allow_from: list[Network] = Field(
        default_factory=lambda: list(PRIVATE),
        description="networks that may reach services with a `host` beyond loopback; private addresses by default",
    )
    ssh_from: list[Network] = Field(
        default_factory=list, description="with `closed`: networks that may log in by SSH; all if not given"
    )
    open_ports: list[Port] = Field(
        default_factory=list, description="with `closed`: further TCP ports that stay open"
    )
    confirm_s: int = Field(
        60, ge=5, le=600, description="new rules go back after so many seconds, unless a new connection comes through"
    )

    @field_validator("open_ports")
    @classmethod
    def _ports_are_named_once(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("a port is named twice")
        return value

    @model_validator(mode="after")
    def _rules_have_a_policy(self) -> Firewall:
        for key in ("ssh_from", "open_ports"):
            if getattr(self, key) and self.policy != "closed":
                raise ValueError(f"{key} belongs to policy 'closed', and policy is {self.policy!r}")
        return self
