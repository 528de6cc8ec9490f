"""Fresh nodes with an SSH server, in containers of this computer, and what their own counters say."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from moehost import sandbox

PREFIX = "moehost-speed"
# Ansible needs the last two on a node; for both tools they are there.
PACKAGES = ("openssh-server", "python3", "python3-apt")
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
# Each session becomes a line in the journal.
PREPARE = """
install -d -m 700 /root/.ssh && cat >/root/.ssh/authorized_keys
echo 'LogLevel VERBOSE' >/etc/ssh/sshd_config.d/count.conf && systemctl restart ssh.service
"""
COUNTERS = """
journalctl --quiet --output cat | grep -c '^Starting session: '
cat /sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes
"""
# What both tools bring: their paths, and what is in them.
BROUGHT = """
cd / && find etc/apt etc/needrestart etc/sysusers.d etc/tmpfiles.d etc/moehost etc/systemd/system opt/moehost \\
    srv/models usr/local -type f -exec sha256sum {} + -o -type l -printf '%l  %p\\n' | sort
grep -hv MOEHOST_GENERATION etc/systemd/system/llama-server-*.service
dpkg-query --show --showformat '${Package} ${Version}\\n'
"""
AT_A_TIME = 2
# Of systemd, journald, dbus and udev in each node; some are this computer's own.
WATCHES, OWN_WATCHES = 6, 16
LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


@dataclass(frozen=True)
class Counters:
    """What a node has counted since it runs: sessions, one for each command or transfer of files, and bytes."""

    sessions: int
    received_bytes: int
    sent_bytes: int

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            self.sessions - before.sessions,
            self.received_bytes - before.received_bytes,
            self.sent_bytes - before.sent_bytes,
        )


@dataclass(frozen=True)
class Node:
    """A node that can be reached over SSH as root."""

    name: str
    address: str
    host_key: str

    @property
    def counters(self) -> Counters:
        """What it has counted until now."""
        return Counters(*map(int, sandbox.execute(self.name, "sh", "-c", COUNTERS).split()))

    @property
    def brought(self) -> set[str]:
        """Its files and packages, a line each."""
        return set(sandbox.execute(self.name, "sh", "-c", BROUGHT).splitlines())

    def ask(self, fact: type[FactBase[Any]], **arguments: Any) -> Any:
        """What a fact of pyinfra's says of it."""
        output = sandbox.execute(self.name, "sh", "-c", str(fact().command(**arguments)))
        return fact().process(output.splitlines())


def start(names: list[str], public_key: str) -> list[Node]:
    """Fresh nodes with these names; what had such a name before is gone. Raises SandboxError."""
    if int(LIMIT.read_text()) < (needed := WATCHES * len(names) + OWN_WATCHES):
        key = ".".join(LIMIT.parts[-3:])
        raise sandbox.SandboxError(f"{len(names)} nodes need {key} of {needed}; set it with `sysctl {key}={needed}`")
    sandbox.image(print, further=PACKAGES)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(lambda name: _fresh(name, public_key), names))


def _fresh(name: str, public_key: str) -> Node:
    sandbox.down(name)
    sandbox.up(name, lambda _: None, further=PACKAGES)
    sandbox.execute(name, "sh", "-c", PREPARE, stdin=public_key)
    address = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]
    return Node(name, sandbox.run(address).stdout.strip(), sandbox.execute(name, "cat", HOST_KEY).strip())


def remove() -> None:
    """Take away all nodes of the benchmark, also those of a run that was killed."""
    listed = sandbox.run(["podman", "ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{PREFIX}-"])
    for name in listed.stdout.split():
        sandbox.down(name)


@dataclass(frozen=True)
class Access:
    """A key pair of the benchmark's own, and the host keys of its nodes, in a folder."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """The file with the host keys."""
        return self.folder / "known_hosts"

    def make(self) -> str:
        """Make the key pair; gives the public one."""
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", str(self.key)]
        subprocess.run(words, check=True)
        return Path(f"{self.key}.pub").read_text()

    def to(self, node: Node) -> dict[str, str]:
        """How pyinfra reaches a node: data of a host."""
        return {
            "ssh_hostname": node.address,
            "ssh_user": "root",
            "ssh_key": str(self.key),
            "ssh_known_hosts_file": str(self.known_hosts),
            "ssh_strict_host_key_checking": "yes",
        }

    def know(self, nodes: list[Node]) -> None:
        """Note the host keys of nodes, instead of those before."""
        self.known_hosts.write_text("".join(f"{each.address} {each.host_key}\n" for each in nodes))
