"""What an owner may write of who gets at a node: the gateway before its services, the firewall (docs/access.md)."""

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
        if bool(self.certificate_file) != bool(self.certificate_key_file):
            raise ValueError("certificate_file and certificate_key_file belong together; write both or none")
        return self


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
