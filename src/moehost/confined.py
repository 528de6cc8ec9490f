"""What the transient units of a node may do: properties of systemd's, spelled once; docs/sandboxes.md shows them.

`BASE` takes away all that no program of moehost's needs. A unit says what it is given back, each with its reason.
systemd reads the properties in order: a later value replaces an earlier one, and lists grow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Literal

FETCHER = "moehost-fetch"
BUILDER = "moehost-build"
ROUTER = "moehost-router"
Origin = Literal["network", "store", "node"]

BASE: Mapping[str, str] = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    # Keys reach a unit as its credential or not at all.
    "InaccessiblePaths": "-/etc/moehost",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "PrivateDevices": "yes",
    "DevicePolicy": "closed",
    "PrivateIPC": "yes",
    "PrivateUsers": "yes",
    "PrivateNetwork": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "IPAddressDeny": "any",
    "RestrictAddressFamilies": "AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "UMask": "0077",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
}
CALLS = ("@system-service", "~@privileged @resources")
# What answers for an address of its own asks a resolver for it, and the kernel which way leads there.
NETWORK = {
    "PrivateNetwork": "no",
    "IPAddressDeny": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
}
# Root's number, and a right over the files of others, count for nothing in a namespace of users.
NODES_USERS = {"PrivateUsers": "no"}


def _properties(changes: Mapping[str, str], calls: Iterable[str] = CALLS) -> list[str]:
    """The base with these changes, KEY=VALUE; an empty value takes back what would be the case without the key."""
    given = [f"{key}={value}" for key, value in {**BASE, **changes}.items()]
    return [*given, *(f"SystemCallFilter={each}" for each in calls)]


def _addresses(hosts: Iterable[str]) -> dict[str, str]:
    """Nothing beyond loopback and these addresses of the node's own, as they stand in a URL."""
    plain = {each.strip("[]") for each in hosts}
    further = sorted(each for each in plain if not ipaddress.ip_address(each).is_loopback)
    # systemd-run knows the word `localhost` alone, and not in a list.
    return {"IPAddressAllow": " ".join(["127.0.0.0/8", "::1/128", *further])}


def _cards(has_cards: bool) -> dict[str, str]:
    """What a server with cards has, templates/llama_server/llama-server.service.j2."""
    if not has_cards:
        return {}
    return {"PrivateDevices": "no", "DeviceAllow": "char-nvidia* rw", "PrivateIPC": "no"}


def fetch(store: str, origin: Origin) -> list[str]:
    """Of what brings a model: it reads what strangers send, and may write the store, which belongs to its account.

    + store: the model store
    + origin: where the model is: on the `network`, in the `store` already, or elsewhere on the `node`
    """
    changes = {
        "User": FETCHER,
        "ReadWritePaths": store,
        # Servers read the models as somebody else.
        "UMask": "0022",
        # The model that serves just now comes first.
        "Nice": "10",
        "OOMScoreAdjust": "500",
    }
    if origin == "network":
        changes |= NETWORK
    if origin == "node":
        # It may lie where only its owner reads, at home for instance.
        changes |= {**NODES_USERS, "ProtectHome": "read-only"}
        changes |= dict.fromkeys(("CapabilityBoundingSet", "AmbientCapabilities"), "CAP_DAC_READ_SEARCH")
    return _properties(changes)


# The model that serves just now comes first.
LAST = {
    "Nice": "19",
    "CPUSchedulingPolicy": "batch",
    "CPUWeight": "10",
    "IOWeight": "10",
    "OOMScoreAdjust": "1000",
}


def inspect(store: str) -> list[str]:
    """Of what reads all models and writes down beside them what is damaged, after everybody else.

    + store: the model store
    """
    changes = {
        **LAST,
        "User": FETCHER,
        "ReadWritePaths": store,
        # What it finds is there for servers and deploys to read.
        "UMask": "0022",
        "CPUSchedulingPolicy": "idle",
        "IOSchedulingClass": "idle",
        "CPUWeight": "1",
        "IOWeight": "1",
        "MemoryMax": "512M",
    }
    return _properties(changes)


def _workshop(folder: str) -> dict[str, str]:
    """What is built is a stranger's program until it is proven: it gets the workshop, at the end of every queue."""
    return {
        "User": BUILDER,
        "Environment": f"HOME={folder}",
        "WorkingDirectory": folder,
        "ReadWritePaths": folder,
        **LAST,
    }


def checkout(workshop: str) -> list[str]:
    """Of git, which gets an engine's source: the only unit of the builder's that has a network.

    + workshop: the builder's folder
    """
    # What is checked out goes into images as it is, where others read it.
    return _properties({**_workshop(workshop), **NETWORK, "UMask": "0022"})


def build(workshop: str) -> list[str]:
    """Of CMake and compilers.

    + workshop: the builder's folder
    """
    # Compilers count processors and memory in /proc. That NVIDIA's compiler makes no code that it runs is not proven.
    return _properties({**_workshop(workshop), "ProcSubset": "all", "MemoryDenyWriteExecute": "no"})


def prove(workshop: str, has_cards: bool) -> list[str]:
    """Of an engine that is started for the first time, as a server would be, on a loopback of its own.

    + workshop: the builder's folder
    + has_cards: whether it is to compute on the cards
    """
    families = "AF_INET AF_INET6 AF_UNIX" + (" AF_NETLINK" if has_cards else "")
    changes = {**_workshop(workshop), "ProcSubset": "all", "RestrictAddressFamilies": families, **_addresses([])}
    # Threads are bound to cores with what is taken from others.
    return _properties({**changes, **_cards(has_cards)}, ("@system-service", "~@privileged", "@resources"))


def image() -> list[str]:
    """Of Podman, which makes an image: it needs root and what containers are made of, but no key.

    The stages that run the engine's own code are somebody else's, without a network (Containerfile.j2).
    """
    given = ("Environment=HOME=/root", "InaccessiblePaths=-/etc/moehost", "PrivateTmp=yes", "MemorySwapMax=0")
    return [*given, *(f"{key}={value}" for key, value in LAST.items())]


def bench(folder: str, host: str) -> list[str]:
    """Of what asks a service of this node again and again, with its key as a credential.

    + folder: with its program and what it answers
    + host: address of the service
    """
    changes = {
        "DynamicUser": "yes",
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_INET AF_INET6",
        **_addresses([host]),
        "WorkingDirectory": folder,
        "StandardOutput": f"append:{folder}/answers.jsonl",
        # A day: no benchmark takes that long.
        "RuntimeMaxSec": "86400",
    }
    return _properties(changes)


def tune(folder: str, host: str, has_cards: bool) -> list[str]:
    """Of what stops a service and launches engines in its place, as the service's account and with its restrictions.

    + folder: below /run, its programs, jobs and answers; gone with the unit
    + host: address of the service
    + has_cards: whether engines compute on cards
    """
    changes = {
        **NODES_USERS,
        # The account is changed for each launch, and a launch is ended.
        "CapabilityBoundingSet": "CAP_SETUID CAP_SETGID CAP_KILL",
        # The requests of the service that is to stop are counted with its key.
        "InaccessiblePaths": "",
        # systemd removes it in the end: the unit itself can't, for which it is a mount.
        "RuntimeDirectory": folder.removeprefix("/run/"),
        "RuntimeDirectoryMode": "0700",
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX" + (" AF_NETLINK" if has_cards else ""),
        **_addresses([host]),
        "ProcSubset": "all",
        **_cards(has_cards),
    }
    return _properties(changes, ("@system-service", "~@privileged", "@setuid @resources"))


def switch(folder: str, written: Iterable[str], hosts: Iterable[str]) -> list[str]:
    """Of what restarts services with another engine, and writes links and units when they have answered.

    + folder: its job and what it says
    + written: further folders that it writes
    + hosts: addresses of the services
    """
    changes = {
        **NODES_USERS,
        # The environment of a server says which engine it was started with.
        "CapabilityBoundingSet": "CAP_SYS_PTRACE",
        # It asks services with their keys, and keeps their plans there.
        "InaccessiblePaths": "",
        "ReadWritePaths": " ".join([folder, *written]),
        # Units and plans are there for all to read.
        "UMask": "0022",
        # For journalctl, and ss.
        "ProcSubset": "all",
        "PrivateNetwork": "no",
        # The last of them: whether connections of the server before still hold its port.
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        **_addresses(hosts),
    }
    return _properties(changes)


def containerd() -> list[str]:
    """Of NVIDIA's program that tells containerd of CDI, and of containerd's restart."""
    return _properties({**NODES_USERS, "ReadWritePaths": "/etc", "UMask": "0022"})


def filter_back(state: str) -> list[str]:
    """Of what puts back the rules of the packet filter that nobody has confirmed.

    + state: folder of the rules from before
    """
    changes = {
        **NODES_USERS,
        "CapabilityBoundingSet": "CAP_NET_ADMIN",
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_UNIX AF_NETLINK",
        "ReadWritePaths": state,
    }
    return _properties(changes)


def leases(drains: str) -> list[str]:
    """Of what gives nodes requests again whose drain is over: it talks to HAProxy, whose account it has.

    + drains: folder of the leases
    """
    return _properties({"User": ROUTER, "ReadWritePaths": drains})
