"""Every unit that moehost ships: who it runs as, what `systemd-analyze security` may say of it, and why not less.

A new unit gets a line in `UNITS`, with a reason for each check of systemd's that it leaves open (`Unit.open`), or in
`EXEMPT`. `UPDATE_GOLDEN=1 pytest tests/unit/test_sandboxes.py` then writes docs/sandboxes.md anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moehost import confined, settings
from moehost.settings_metrics import Metrics
from roles.gateway import operations as gateway
from roles.metrics import wanted as metrics
from roles.models import verification
from roles.operations import render
from roles.router import wanted as router
from tests.unit.test_unit import UNITS as SERVERS
from tests.unit.test_unit import WORKERS

# Why a check stays open, where nothing else is said of a unit.
REASONS = {
    "RootDirectory=/RootImage=": "its programs are the node's own, which apt keeps up to date",
    "DeviceAllow=": "`ProtectClock=` lets the clock be read, which counts as a device",
    "RestrictAddressFamilies=~AF_UNIX": "accounts and the journal are reached over such sockets",
    "RestrictAddressFamilies=~AF_NETLINK": "the way to an address is asked of the kernel over such sockets",
    "RestrictAddressFamilies=~AF_(INET|INET6)": "it talks HTTP",
    "PrivateNetwork=": "it talks to others on this machine or beyond",
    "IPAddressDeny=": "loopback is allowed",
    "ProcSubset=": "it reads how many processors and how much memory there are",
    "SystemCallFilter=~@resources": "threads are bound to cores, and memory to NUMA nodes",
    "UMask=": "what it writes is there for others to read",
    "PrivateUsers=": "root is root in the node's own namespace of users only",
    "User=/DynamicUser=": "systemd obeys root",
}
ROOT = ("User=/DynamicUser=", "PrivateUsers=")
LOOPBACK = ("PrivateNetwork=", "RestrictAddressFamilies=~AF_(INET|INET6)", "IPAddressDeny=")
ALL = ("RootDirectory=/RootImage=", "DeviceAllow=")
UNIX = "RestrictAddressFamilies=~AF_UNIX"
NETLINK = "RestrictAddressFamilies=~AF_NETLINK"
CARDS = {
    "DeviceAllow=": "the cards",
    "PrivateDevices=": "the cards",
    NETLINK: "the driver's library uses such sockets",
}


@dataclass(frozen=True)
class Unit:
    """One shipped unit.

    + origin: template below `templates/`, or the file that starts it with systemd-run
    + text: of the unit, or one with the same properties
    + user: account that it runs as
    + value: what systemd-analyze says of it
    + open: checks that it leaves open, each with its reason
    + at_most: what systemd-analyze may say of it
    """

    origin: str
    text: str
    user: str
    value: float
    open: dict[str, str]
    at_most: float = 2.0


def transient(properties: Iterable[str]) -> str:
    """A unit file with what systemd-run is given."""
    return "\n".join(["[Service]", "ExecStart=/bin/true", *properties, ""])


def reasons(*checks: str) -> dict[str, str]:
    """The usual reasons of these checks."""
    return {each: REASONS[each] for each in checks}


FETCH, BUILD = "roles/models/operations.py", "roles/ik_llama/build.py"
SERVER = "llama_server/llama-server.service.j2"
SERVER_OPEN = reasons(*ALL, *LOOPBACK, UNIX, "ProcSubset=", "SystemCallFilter=~@resources")
WORKER = "rpc_worker/moehost-rpc.service.j2"
WORKER_OPEN = {
    **SERVER_OPEN,
    "RestrictAddressFamilies=~AF_(INET|INET6)": "its main node talks to it, by IPv4",
    "PrivateNetwork=": "its main node talks to it",
    "IPAddressDeny=": "its main node's address is allowed, and no other",
}
TUNE_OPEN = {
    **SERVER_OPEN,
    **reasons(*ROOT),
    "CapabilityBoundingSet=~CAP_SET(UID|GID|PCAP)": "it launches engines as the account of the services",
    "CapabilityBoundingSet=~CAP_KILL": "it ends what it has launched",
    "SystemCallFilter=~@privileged": "it launches engines as the account of the services",
}
FILTER_OPEN = {
    **reasons(*ALL, *ROOT),
    **dict.fromkeys(
        ("CapabilityBoundingSet=~CAP_NET_ADMIN", "PrivateNetwork=", NETLINK), "the filter is the network's"
    ),
}
GATEWAY = "gateway/moehost-gateway.service.j2"
SERVICE = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}
GATEWAY_NODE = settings.read({"gateway": {"host": "llm.home.arpa", "port": 8443}, "services": [SERVICE]})
GATEWAY_OPEN = {
    **reasons(*ALL, *LOOPBACK, UNIX),
    "IPAddressDeny=": "it is there for the computers of your network",
}
ROUTER_NODE = settings.read({"router": {"host": "llm.home.arpa", "port": 8443, "nodes": ["epyc1"]}})
WATCHED = Metrics.model_validate({"prometheus": True})
TELEMETRY_OPEN = {
    **reasons(*ALL, *LOOPBACK, UNIX),
    "ProcSubset=": "the clock, the load and the disks are read there",
    "ProtectHome=": "the models' disk may lie below /home",
    "UMask=": "the exporter, another account, reads what it writes",
    "SupplementaryGroups=": "the kernel's log has what the driver says of cards",
}
PROMETHEUS_OPEN = {
    **reasons(*ALL, *LOOPBACK),
    "ProcSubset=": "its own use of the processor is read there",
    UNIX: "names of hosts are asked for over such sockets",
}
EXPORTER_OPEN = {
    **reasons("RootDirectory=/RootImage=", *LOOPBACK, UNIX),
    NETLINK: "the network's figures come over such sockets",
    "ProcSubset=": "that is what it is for",
    "ProtectProc=": "process 1 alone knows how the disks are mounted",
    "ProtectHome=": "there may be disks below /home",
    **dict.fromkeys(
        ("ProtectClock=", "SystemCallFilter=~@clock", "SystemCallFilter=~@privileged"),
        "whether the clock is synchronised is asked by the call that could set it, for which it lacks the capability",
    ),
}
NOTIFY = "notify/moehost-notify@.service.j2"
NOTIFY_OPEN = {
    **reasons(*ALL, *LOOPBACK, UNIX, "ProcSubset="),
    "IPAddressDeny=": "the address may be anywhere",
    "SupplementaryGroups=": "the journal has what a unit said last",
}
SENDMAIL = "sendmail is set-uid or set-gid, and keeps queues and logs of its own"
NOTIFY_MAIL_OPEN = {
    **{check: why for check, why in NOTIFY_OPEN.items() if check != "SupplementaryGroups="},
    **reasons(*ROOT),
    **dict.fromkeys(
        (
            "CapabilityBoundingSet=~CAP_(CHOWN|FSETID|SETFCAP)",
            "CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)",
            "CapabilityBoundingSet=~CAP_SET(UID|GID|PCAP)",
            "NoNewPrivileges=",
            "SystemCallFilter=~@privileged",
            "SystemCallFilter=~@resources",
        ),
        SENDMAIL,
    ),
}


def telemetry(has_cards: bool) -> str:
    """The unit that looks at cards and services."""
    values = {"library": "/usr/local/lib/moehost", "services": ["tiny"], "interval_s": 60, "addresses": []}
    return render("metrics/moehost-telemetry.service.j2", has_cards=has_cards, **values)


def notify(by: str) -> str:
    """The unit that tells of a failure."""
    values = {"library": "/usr/local/lib/moehost", "programs": "/usr/local/libexec/moehost"}
    return render(NOTIFY, by=by, mail_to="you@home.arpa" if by == "mail" else None, **values)


NOT_PROVEN = "that the driver's programs do without is not proven"
NODES = "nvidia-modprobe makes device nodes with the owner and mode that the driver names"

UNITS = {
    "llama-server-NAME": Unit(SERVER, SERVERS["cpu"], "moehost", 1.0, SERVER_OPEN, 1.5),
    "llama-server-NAME with cards": Unit(SERVER, SERVERS["gpus"], "moehost", 1.2, {**SERVER_OPEN, **CARDS}, 1.5),
    "llama-server-NAME with `sys_nice`, off by default": Unit(
        SERVER,
        SERVERS["nodes"],
        "moehost",
        1.4,
        {
            **SERVER_OPEN,
            "CapabilityBoundingSet=~CAP_SYS_(NICE|RESOURCE)": "asked for",
            "AmbientCapabilities=": "asked for",
            "PrivateUsers=": "in a namespace of users the capability would count for nothing",
        },
        1.5,
    ),
    "llama-server-NAME with a `host` beyond loopback": Unit(
        SERVER,
        SERVERS["open"],
        "moehost",
        1.2,
        {**SERVER_OPEN, "IPAddressDeny=": "others may ask it; it may bind its port and no other"},
        1.5,
    ),
    "moehost-rpc-NAME": Unit(WORKER, WORKERS["worker"], "moehost", 1.1, WORKER_OPEN, 1.5),
    "moehost-rpc-NAME with cards": Unit(
        WORKER, WORKERS["worker-cards"], "moehost", 1.3, {**WORKER_OPEN, **CARDS}, 1.5
    ),
    "moehost-fetch-NAME from a hub or by https": Unit(
        FETCH,
        transient(confined.fetch("/srv/models", "network")),
        "moehost-fetch",
        1.1,
        {
            **reasons(*ALL, UNIX, NETLINK, "RestrictAddressFamilies=~AF_(INET|INET6)", "PrivateNetwork="),
            "IPAddressDeny=": "nobody knows the addresses of a hub's storage beforehand",
            "UMask=": "servers read the models as another account",
        },
    ),
    "moehost-fetch-NAME of an upload": Unit(
        FETCH,
        transient(confined.fetch("/srv/models", "store")),
        "moehost-fetch",
        0.2,
        {**reasons(*ALL, UNIX), "UMask=": "servers read the models as another account"},
    ),
    "moehost-fetch-NAME of a file on the node": Unit(
        FETCH,
        transient(confined.fetch("/srv/models", "node")),
        "moehost-fetch",
        0.7,
        {
            **reasons(*ALL, UNIX),
            **dict.fromkeys(
                ("CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)", "AmbientCapabilities=", "ProtectHome="),
                "the file may lie where only its owner reads; there is no network to tell it to",
            ),
            "PrivateUsers=": "in a namespace of users the capability would count for nothing",
            "UMask=": "servers read the models as another account",
        },
    ),
    "moehost-verify": Unit(
        "models/moehost-verify.service.j2",
        verification.units("/srv/models", "monthly")[f"{verification.UNITS}/{verification.UNIT}"],
        "moehost-fetch",
        0.2,
        {**reasons(*ALL, UNIX), "UMask=": "what it finds is there for others to read"},
    ),
    "moehost-verify-now": Unit(
        "roles/models/verify.py",
        transient(confined.inspect("/srv/models")),
        "moehost-fetch",
        0.2,
        {**reasons(*ALL, UNIX), "UMask=": "what it finds is there for others to read"},
    ),
    "moehost-checkout": Unit(
        BUILD,
        transient(confined.checkout("/var/lib/moehost-build")),
        "moehost-build",
        1.1,
        {
            **reasons(*ALL, UNIX, NETLINK, "RestrictAddressFamilies=~AF_(INET|INET6)", "PrivateNetwork="),
            "IPAddressDeny=": "a repository may be anywhere",
            "UMask=": "the source is copied into images as it is",
        },
    ),
    "moehost-build": Unit(
        BUILD,
        transient(confined.build("/var/lib/moehost-build")),
        "moehost-build",
        0.2,
        {
            **reasons(*ALL, UNIX, "ProcSubset="),
            "MemoryDenyWriteExecute=": "that NVIDIA's compiler runs no code that it has made is not proven",
        },
    ),
    "moehost-prove": Unit(
        BUILD,
        transient(confined.prove("/var/lib/moehost-build", has_cards=False)),
        "moehost-build",
        0.6,
        {
            **{key: reason for key, reason in SERVER_OPEN.items() if key != "PrivateNetwork="},
            "IPAddressDeny=": "a loopback of its own is allowed",
        },
    ),
    "moehost-prove with cards": Unit(
        BUILD,
        transient(confined.prove("/var/lib/moehost-build", has_cards=True)),
        "moehost-build",
        0.8,
        {
            **{key: reason for key, reason in SERVER_OPEN.items() if key != "PrivateNetwork="},
            **CARDS,
            "IPAddressDeny=": "a loopback of its own is allowed",
        },
    ),
    "moehost-bench": Unit(
        "roles/bench/bench.py",
        transient(confined.bench("/run/moehost-bench", "127.0.0.1")),
        "an account of the moment",
        0.9,
        reasons(*ALL, *LOOPBACK),
    ),
    "moehost-tune": Unit(
        "roles/tune/tuned.py",
        transient(confined.tune("/run/moehost-tune", "127.0.0.1", has_cards=False)),
        "root, and moehost for engines",
        2.0,
        TUNE_OPEN,
    ),
    "moehost-tune with cards": Unit(
        "roles/tune/tuned.py",
        transient(confined.tune("/run/moehost-tune", "127.0.0.1", has_cards=True)),
        "root, and moehost for engines",
        2.3,
        {**TUNE_OPEN, **CARDS},
        2.3,
    ),
    "moehost-switch": Unit(
        "roles/llama_server/switch.py",
        transient(confined.switch("/run/moehost-switch", ["/opt/moehost/engine"], ["127.0.0.1"])),
        "root",
        1.8,
        {
            **reasons(*ALL, *ROOT, *LOOPBACK, NETLINK, "UMask="),
            UNIX: "systemd is told what to restart over such a socket",
            "CapabilityBoundingSet=~CAP_SYS_PTRACE": "the environment of a server says what it was started with",
            "ProcSubset=": "`ss` and `journalctl` read there",
        },
    ),
    "moehost-containerd-cdi": Unit(
        "roles/nvidia_container_toolkit/runtimes.py",
        transient(confined.containerd()),
        "root",
        0.7,
        {
            **reasons(*ALL, *ROOT, "UMask="),
            UNIX: "systemd is told what to restart over such a socket",
        },
    ),
    "moehost-gateway": Unit(
        GATEWAY,
        gateway.unit(GATEWAY_NODE, "0123456789abcdef"),
        "moehost-gateway",
        1.0,
        GATEWAY_OPEN,
    ),
    "moehost-router": Unit(
        "router/moehost-router.service.j2",
        router.unit(ROUTER_NODE, [], "0123456789abcdef"),
        "moehost-router",
        1.0,
        GATEWAY_OPEN,
    ),
    "moehost-router-leases": Unit(
        "router/moehost-router-leases.service.j2",
        router.leases()[f"{router.UNITS}/{router.LEASES}"],
        "moehost-router",
        0.2,
        reasons(*ALL, UNIX),
    ),
    "moehost-firewall": Unit(
        "firewall/moehost-firewall.service.j2",
        render("firewall/moehost-firewall.service.j2", nft="/usr/sbin/nft", path="/etc/moehost/firewall.nft"),
        "root",
        1.4,
        {check: why for check, why in FILTER_OPEN.items() if check != "RootDirectory=/RootImage="},
    ),
    "moehost-firewall-revert": Unit(
        "firewall/try-rules.j2",
        transient(confined.filter_back("/run/moehost-firewall")),
        "root",
        1.4,
        {**FILTER_OPEN, UNIX: "systemd is told that the timer is done over such a socket"},
    ),
    "moehost-telemetry": Unit(
        "metrics/moehost-telemetry.service.j2", telemetry(has_cards=False), "moehost-telemetry", 1.1, TELEMETRY_OPEN
    ),
    "moehost-telemetry with cards": Unit(
        "metrics/moehost-telemetry.service.j2",
        telemetry(has_cards=True),
        "moehost-telemetry",
        1.2,
        {**TELEMETRY_OPEN, "DeviceAllow=": "the cards", "PrivateDevices=": "the cards"},
    ),
    "moehost-prometheus": Unit(
        "metrics/moehost-prometheus.service.j2",
        metrics.prometheus(WATCHED, "node"),
        "an account of the moment",
        1.0,
        PROMETHEUS_OPEN,
    ),
    "prometheus-node-exporter, Debian's with a drop-in": Unit(
        "metrics/exporter.conf.j2",
        metrics.exporter(WATCHED) + "User=prometheus\n",
        "prometheus",
        1.6,
        EXPORTER_OPEN,
    ),
    "moehost-notify by ntfy or webhook": Unit(NOTIFY, notify("ntfy"), "moehost-notify", 1.2, NOTIFY_OPEN),
    "moehost-notify by mail": Unit(NOTIFY, notify("mail"), "root", 2.6, NOTIFY_MAIL_OPEN, 2.6),
    "moehost-gpu": Unit(
        "gpu_gate/moehost-gpu.service.j2",
        render("gpu_gate/moehost-gpu.service.j2", words="/usr/local/libexec/moehost/gpu-ready 2 120"),
        "root",
        4.0,
        {
            **reasons("RootDirectory=/RootImage="),
            **dict.fromkeys(
                ("User=/DynamicUser=", "PrivateUsers=", "CapabilityBoundingSet=~CAP_SYS_ADMIN"),
                "the driver takes a power limit from root with this capability only",
            ),
            **dict.fromkeys(
                (
                    "ProtectKernelModules=",
                    "CapabilityBoundingSet=~CAP_SYS_MODULE",
                    "SystemCallFilter=~@module",
                    "SystemCallFilter=~@privileged",
                ),
                "it loads the driver's modules",
            ),
            **dict.fromkeys(
                (
                    "CapabilityBoundingSet=~CAP_MKNOD",
                    "CapabilityBoundingSet=~CAP_(CHOWN|FSETID|SETFCAP)",
                    "CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)",
                    "UMask=",
                ),
                NODES,
            ),
            **dict.fromkeys(
                ("PrivateDevices=", "ProtectClock=", "DeviceAllow="),
                "the cards' devices get their numbers when the module is loaded; a list made before would lack them",
            ),
            "ProtectKernelTunables=": "nvidia-modprobe may write in /sys",
            UNIX: "nvidia-persistenced is asked over such a socket",
            NETLINK: "the driver's library uses such sockets",
            "ProcSubset=": "the driver is read in /proc/driver, /proc/devices and /proc/modules",
            **dict.fromkeys(
                (
                    "CapabilityBoundingSet=~CAP_SYS_RAWIO",
                    "CapabilityBoundingSet=~CAP_SYS_(NICE|RESOURCE)",
                    "CapabilityBoundingSet=~CAP_IPC_LOCK",
                    "MemoryDenyWriteExecute=",
                    "PrivateNetwork=",
                    "SystemCallFilter=~@debug",
                    "SystemCallFilter=~@raw-io",
                    "SystemCallFilter=~@resources",
                ),
                NOT_PROVEN,
            ),
        },
        4.0,
    ),
}

# What is no unit of moehost's own making: Podman needs what its container must not have.
PODMAN = (
    "Podman is root and makes namespaces and mounts; the container has no capability but SYS_NICE, which `sys_nice` "
    "takes away, and writes to its state folder and /tmp only"
)
EXEMPT = {
    "llama_server/llama-server.container.j2": f"Quadlet of llama-server-NAME. {PODMAN}",
    "llama_server/llama-server-podman.service.j2": f"llama-server-NAME for Podman before 4.4. {PODMAN}",
    "roles/ik_llama/image.py": "moehost-image: Podman makes an image. It is root and unpacks files of all owners; "
    "the engine's code runs in it as another account, without a network; keys are inaccessible to both",
}
