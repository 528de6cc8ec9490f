"""What an owner may write of a model that several nodes share (docs/rpc.md)."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from moehost.setting import Settings, matching

# RFC 1918 and RFC 3927: the engines' RPC speaks IPv4 only.
PRIVATE_V4 = tuple(
    ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
)
PORT = 50052
# As in the engines (GGML_RPC_MAX_SERVERS).
MOST_WORKERS = 16
Link = Literal["1GbE", "2.5GbE", "10GbE", "25GbE", "40GbE", "100GbE"]


def _address(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError(
            f"{value!r} is no IPv4 address, and the engine's RPC speaks no other; write e.g. 10.0.0.2"
        ) from None


def _network(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no IPv4 network ({error}); write e.g. 10.0.0.0/24") from None
    if not any(network.subnet_of(each) for each in PRIVATE_V4):
        raise ValueError(
            f"{value} is no private network, and whoever reaches a worker owns it; write one of 10.0.0.0/8, "
            "172.16.0.0/12, 192.168.0.0/16 or 169.254.0.0/16"
        )
    return str(network)


Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Host = Annotated[
    str, matching(r"@?[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?", "write the name of an inventory's host")
]


class Worker(Settings):
    """A node that holds layers of another node's model."""

    host: Host = Field(description="its name in the inventory")
    address: Address = Field(description="its address in `network`")


class Rpc(Settings):
    """One model over several nodes, by the engine's own RPC: neither encrypted nor authenticated."""

    network: Network = Field(
        description="private network between the nodes, e.g. `10.0.0.0/24`; every address must be in it"
    )
    address: Address = Field(description="this node's address in `network`")
    workers: list[Worker] = Field(
        min_length=1, max_length=MOST_WORKERS, description="the nodes that hold layers, in this order"
    )
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(
        PORT, description="port of the workers for this service; each service has its own"
    )
    memory: Literal["auto", "cards", "ram"] = Field(
        "auto",
        description="what of a worker holds layers: its `cards`, or its `ram`; `auto`: its cards where it has some",
    )
    threads: int | None = Field(
        None, ge=1, description="threads of a worker whose RAM holds layers; all of its cores if not given"
    )
    link: Link = Field("10GbE", description="what the network is, for the prediction")
    link_gb_s: float | None = Field(
        None, gt=0, description="measured throughput between the nodes, GB/s; that of `link` if not given"
    )
    latency_us: float | None = Field(
        None, gt=0, description="measured round trip between the nodes, microseconds; that of `link` if not given"
    )
    cache: bool = Field(
        False,
        description="whether a worker keeps the weights on its disk, below `/var/lib/moehost-rpc`, so that a start "
        "sends them once only; nothing ever removes them there",
    )

    @model_validator(mode="after")
    def _addresses_are_of_the_network(self) -> Rpc:
        network = ipaddress.IPv4Network(self.network)
        taken: dict[str, str] = {}
        given = {"address": self.address} | {f"workers[{n}].address": w.address for n, w in enumerate(self.workers)}
        for key, address in given.items():
            if ipaddress.IPv4Address(address) not in network:
                raise ValueError(f"{key}: {address} is not in the network {self.network}; a worker is for that alone")
            if address in taken:
                raise ValueError(f"{key}: {address} is also {taken[address]}")
            taken[address] = key
        hosts = [each.host for each in self.workers]
        if len(set(hosts)) < len(hosts):
            raise ValueError("workers: a host is named twice; a worker's devices all serve by one port")
        return self
