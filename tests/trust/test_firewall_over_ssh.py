"""New rules of the packet filter, tried over SSH: those that cut the deploy off go back by themselves.

sshd stands behind a forwarder on port 2222 here: the node sees a connection from its own loopback, as with a tunnel
or a router that translates addresses, so nobody can tell beforehand that a closed filter will cut it off.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.firewalled import GUARD, table, without_doors
from tests.fixtures.node import ROOT, Node, changes
from tests.fixtures.waiting import until

FORWARDER = 2222
CONFIRM_S = 10
# In which rules are back; a busy computer needs longer to look than to do it.
SOON_S = CONFIRM_S + 5
SOCKET = f"""\
[Socket]
ListenStream={FORWARDER}

[Install]
WantedBy=sockets.target
"""
PROXY = """\
[Service]
ExecStart=/usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:22
"""
# Each session of SSH is a line in the journal.
COUNTED = "/etc/ssh/sshd_config.d/count.conf"
# Of commands, in a run with nothing to do.
AT_MOST = 60
CUT_OFF = "firewall: no new connection comes through the new rules; the rules from before are back in "


@dataclass
class Remote:
    """The node as this computer reaches it over SSH."""

    node: Node
    address: str
    folder: Path

    def inventory(self, port: int, **firewall: Any) -> Path:
        data = without_doors(self.node) | {
            "firewall": {"confirm_s": CONFIRM_S, **firewall},
            "ssh_hostname": self.address,
            "ssh_port": port,
            "ssh_user": "root",
            "ssh_key": str(self.folder / "key"),
            "ssh_known_hosts_file": str(self.folder / "known_hosts"),
            "ssh_strict_host_key_checking": "accept-new",
        }
        path = self.folder / "hosts.py"
        path.write_text(f"nodes = [('node', {data!r})]\n")
        return path

    def start(self, port: int = FORWARDER, **firewall: Any) -> subprocess.Popen[str]:
        """A deploy that goes on."""
        words = ["pyinfra", str(self.inventory(port, **firewall)), "deploy.py", "--yes", "--json"]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def deploy(self, port: int = FORWARDER, **firewall: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(port, **firewall)
        talk, mistakes = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, talk, mistakes)

    def answers(self, port: int = FORWARDER) -> bool:
        """Whether a new connection comes through."""
        options = ("StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={self.folder}/known_hosts",
                   "BatchMode=yes", "ConnectTimeout=2", "IdentitiesOnly=yes", "LogLevel=ERROR")  # fmt: skip
        words = ["ssh", *(word for each in options for word in ("-o", each)), "-i", str(self.folder / "key")]
        done = subprocess.run([*words, "-p", str(port), f"root@{self.address}", "true"], capture_output=True)
        return done.returncode == 0


@pytest.fixture(scope="module")
def remote(node, address, without_gateway, tmp_path_factory) -> Iterator[Remote]:
    """The node with sshd behind a forwarder; afterwards it is as it was."""
    folder = tmp_path_factory.mktemp("ssh")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    public = (folder / "key.pub").read_text().strip()
    node.run("apt-get install --yes --quiet --no-install-recommends openssh-server nftables >/dev/null 2>&1")
    node.run(f"install -D -m 600 /dev/null /root/.ssh/authorized_keys; echo '{public}' >/root/.ssh/authorized_keys")
    node.run(f"echo 'LogLevel VERBOSE' >{COUNTED}")
    for name, text in (("forward-ssh.socket", SOCKET), ("forward-ssh.service", PROXY)):
        node.run(f"printf '%s' '{text}' >/etc/systemd/system/{name}")
    node.run("systemctl daemon-reload && systemctl restart ssh.service")
    node.run("systemctl enable --quiet --now forward-ssh.socket")
    found = Remote(node, address, folder)
    assert found.answers(22)
    assert found.answers(FORWARDER)
    yield found
    changes(node.deploy(without_doors(node)))
    node.run("systemctl disable --quiet --now forward-ssh.socket; systemctl stop forward-ssh.service")
    node.run(f"rm -r /etc/systemd/system/forward-ssh.* /root/.ssh {COUNTED} && systemctl daemon-reload")
    node.run("apt-get purge --yes --quiet openssh-server >/dev/null 2>&1")
    assert table(node) == ""


def timer(node: Node) -> str:
    """Whether rules are on trial."""
    return node.run("systemctl is-active moehost-firewall-revert.timer || true")


def cut_off(remote: Remote, node: Node, before: str) -> None:
    """A deploy of rules that no new connection comes through; then the table from before is back."""
    process = remote.start(policy="closed")
    until(lambda: table(node) != before, 120)
    assert timer(node) == "active"
    assert not remote.answers()
    talk, said = process.communicate(timeout=120)
    assert failed(subprocess.CompletedProcess(process.args, process.returncode, talk, said)) == GUARD
    assert re.search(rf"{CUT_OFF}[0-3] s\n", said)
    until(lambda: table(node) == before, SOON_S)
    assert remote.answers()


def failed(deploy: subprocess.CompletedProcess[str]) -> list[str]:
    """Name of the operation with which the deploy of the only host ended."""
    assert deploy.returncode == 1, deploy.stderr
    return re.findall(r"Starting operation: (.*?)\s*$", deploy.stderr, re.MULTILINE)[-1:]


def test_rules_that_cut_off_a_node_without_any_go_back_to_none(remote, node):
    cut_off(remote, node, before="")
    assert node.run("ls /etc/moehost/firewall.nft 2>/dev/null || true") == ""
    assert node.run("systemctl is-enabled moehost-firewall.service || true") == "disabled"
    said = node.run("journalctl --no-pager --output cat --unit moehost-firewall-revert.service")
    assert "nobody has confirmed the new rules: those from before are back" in said


def test_rules_that_let_the_deploy_through_are_kept(remote, node):
    assert changes(remote.deploy(policy="closed", open_ports=[FORWARDER])) == GUARD
    assert timer(node) == "inactive"
    assert node.run("systemctl is-enabled moehost-firewall.service") == "enabled"
    # The port of sshd itself was found on the node.
    assert remote.answers(22)
    assert remote.answers()
    assert changes(remote.deploy(policy="closed", open_ports=[FORWARDER])) == []
    time.sleep(CONFIRM_S)
    assert f"dport {FORWARDER} accept" in table(node)


def test_rules_that_cut_off_go_back_to_those_from_before(remote, node):
    before, file = table(node), node.run("sha256sum /etc/moehost/firewall.nft")
    assert "policy drop" in before
    cut_off(remote, node, before)
    assert node.run("sha256sum /etc/moehost/firewall.nft") == file
    until(lambda: timer(node) == "inactive", SOON_S)


def test_a_deploy_that_is_killed_while_rules_are_on_trial_leaves_those_from_before(remote, node):
    before, file = table(node), node.run("sha256sum /etc/moehost/firewall.nft")
    process = remote.start(policy="closed")
    until(lambda: table(node) not in (before, ""), 120)
    assert timer(node) == "active"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: table(node) == before, SOON_S)
    assert remote.answers()
    assert node.run("sha256sum /etc/moehost/firewall.nft") == file


def test_the_next_deploy_is_a_good_one(remote, node):
    assert changes(remote.deploy(policy="closed", open_ports=[FORWARDER, 8001])) == GUARD
    assert changes(remote.deploy(policy="closed", open_ports=[FORWARDER, 8001])) == []
    assert "8001" in table(node)


def test_a_deploy_with_nothing_to_do_asks_little(remote, node):
    before = sessions(node)
    deployed = remote.deploy(policy="closed", open_ports=[FORWARDER, 8001])
    assert changes(deployed) == []
    (host,) = json.loads(deployed.stdout)["hosts"].values()
    assert 0 < host["commands"] <= AT_MOST
    # All of them are questions.
    assert sessions(node) - before == 1


def sessions(node: Node) -> int:
    """How many sessions of SSH the node has had."""
    return int(node.run("journalctl --quiet --output cat | grep -c '^Starting session: ' || true"))


def test_who_would_certainly_be_locked_out_is_refused_before(remote, node):
    before = table(node)
    deployed = remote.deploy(22, policy="closed", ssh_from=["192.0.2.0/24"])
    assert failed(deployed) == GUARD
    assert (
        "this deploy's own SSH connection comes from 10.88.0.1, which is in none of 192.0.2.0/24" in deployed.stderr
    )
    assert (table(node), timer(node)) == (before, "inactive")


def test_ssh_comes_from_its_networks_alone(remote, node, outside):
    wish = {"policy": "closed", "ssh_from": ["10.88.0.1/32"]}
    assert changes(remote.deploy(22, **wish)) == GUARD
    assert remote.answers(22)
    ask = ["curl", "--silent", "--max-time", "3", f"telnet://{remote.address}:22"]
    assert "SSH-2.0" not in outside.run(*ask, stdin="").stdout
