"""The packet filter's rules: who gets in where, as golden files that nft reads, and what would lock a deploy out.

`UPDATE_GOLDEN=1 pytest tests/unit/test_firewall.py` writes `fixtures/firewall/` anew; read the difference first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from moehost import firewall, settings
from moehost.sharing import NOBODY, Peers
from roles.firewall.facts import RULES
from roles.operations import render

GOLDEN = Path(__file__).parents[1] / "fixtures/firewall"
NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
MODEL = {"name": "m", "source": "file:///srv/m.gguf"}
LOOPBACK = {"name": "inside", "model": MODEL}
OPEN = {"name": "open", "model": MODEL, "host": "0.0.0.0", "port": 8081}
SIX = {"name": "six", "model": MODEL, "host": "2001:db8::7", "port": 8082}
SEEN = firewall.Seen({"moehost": 996}, (22, 2222), ip_address("192.168.1.9"))


def node(policy: str = "services", **more: Any) -> settings.Node:
    """A node with a service on loopback."""
    wish = {"policy": policy, **more.pop("firewall", {})}
    return settings.read({"services": [LOOPBACK], "firewall": wish, **more})


def rules(described: settings.Node, seen: firewall.Seen = SEEN, peers: Peers = NOBODY) -> str:
    return render("firewall/rules.nft.j2", **firewall.values(described, seen, peers))


CONTAINER = {**OPEN, "runtime": "container"}
FILES = {
    "services.nft": rules(
        node(
            services=[LOOPBACK, OPEN, SIX],
            gateway={"host": "llm.home.arpa", "allow_from": ["192.168.0.0/24", "192.168.1.0/24", "fd00::/8"]},
            metrics={"prometheus": True},
        )
    ),
    "container.nft": rules(node(services=[CONTAINER], engine={"image": {}}, firewall={"allow_from": ["10.0.0.0/8"]})),
    "closed.nft": rules(
        node("closed", firewall={"ssh_from": ["192.168.1.0/24"], "open_ports": [9443, 80]}, metrics={})
    ),
    "closed-to-all-but-ssh.nft": rules(node("closed", services=[]), firewall.Seen({}, (22,), None)),
    "open-to-all.nft": rules(node(services=[OPEN], firewall={"allow_from": ["0.0.0.0/0", "::/0", "10.0.0.0/8"]})),
    "worker.nft": rules(node(services=[]), peers=Peers(doors=((50052, "10.0.0.1"), (50053, "10.0.0.9")))),
    "main-of-workers.nft": rules(node("closed"), peers=Peers(calls=(("10.0.0.2", 50052), ("10.0.0.3", 50052)))),
    "open-to-nobody.nft": rules(node(services=[OPEN], firewall={"allow_from": []})),
}


class TestGolden:
    @pytest.mark.parametrize("name", FILES)
    def test_the_whole_file(self, name: str) -> None:
        file = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(FILES[name])
        assert FILES[name] == file.read_text()

    def test_every_file_has_its_rules(self) -> None:
        assert {path.name for path in GOLDEN.iterdir()} == set(FILES)

    @pytest.mark.skipif(not NFT, reason="nftables is not installed")
    @pytest.mark.parametrize("name", FILES)
    def test_nft_takes_it(self, name: str) -> None:
        # In a network namespace of its own: the filter of this computer is in no danger.
        become_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        words = ["unshare", *become_root, "--net"]
        if subprocess.run([*words, "true"], capture_output=True).returncode:
            pytest.skip("this computer gives no network namespace")
        done = subprocess.run([*words, str(NFT), "--check", "--file", GOLDEN / name], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("text", FILES.values(), ids=FILES)
    def test_no_table_of_others_is_touched(self, text: str) -> None:
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert lines[:3] == ["table inet moehost", "delete table inet moehost", "table inet moehost {"]
        assert sum("table" in line for line in lines) == 3
        assert "flush" not in text


class TestNeeded:
    @pytest.mark.parametrize(
        ("described", "needed"),
        [
            (node(), False),
            (node(metrics={}), False),
            (node(services=[]), False),
            (node(services=[LOOPBACK, OPEN]), True),
            (node(gateway={"host": "a.home.arpa"}), True),
            (node("closed", services=[]), True),
            (node("off", services=[OPEN], gateway={"host": "a.home.arpa"}), False),
        ],
    )
    def test_only_where_something_is_to_be_guarded(self, described: settings.Node, needed: bool) -> None:
        assert firewall.is_needed(described) is needed


class TestRules:
    def test_ports_of_moehosts_own_are_shut_before_others_are_opened(self) -> None:
        text = rules(node("closed", services=[LOOPBACK, OPEN], firewall={"open_ports": [8080, 8081]}))
        assert text.index("tcp dport { 8080 } counter drop") < text.index("tcp dport { 8080, 8081 } accept")
        assert text.index("tcp dport { 8081 } counter drop") < text.index("tcp dport { 8080, 8081 } accept")

    def test_without_networks_for_ssh_it_is_open_to_all(self) -> None:
        assert "\n        tcp dport { 22, 2222 } accept\n" in rules(node("closed"))

    def test_a_node_without_ssh_opens_nothing_for_it(self) -> None:
        assert "SSH" not in rules(node("closed"), firewall.Seen({}, (), None))

    def test_services_policy_drops_nothing_but_ports_of_moehosts_own(self) -> None:
        text = rules(node(services=[OPEN]))
        drops = [line.strip() for line in text.splitlines() if "drop" in line]
        assert drops == ["tcp dport { 8081 } counter drop"]
        assert "policy accept" in text
        assert "policy drop" not in text

    def test_a_worker_is_reached_by_its_main_node_alone(self) -> None:
        text = rules(node(services=[]), peers=Peers(doors=((50052, "10.0.0.1"),)))
        gets_in = text.index("ip saddr { 10.0.0.1/32 } tcp dport { 50052 } accept")
        assert gets_in < text.index("tcp dport { 50052 } counter drop")
        assert firewall.is_needed(node(services=[]), Peers(doors=((50052, "10.0.0.1"),)))

    def test_a_server_calls_its_workers_and_nobody_else(self) -> None:
        text = rules(node(services=[OPEN]), peers=Peers(calls=(("10.0.0.2", 50052),)))
        may = text.index("meta skuid { 996 } ip daddr 10.0.0.2 tcp dport 50052 accept")
        assert may < text.index("meta skuid { 996 } ct state new counter reject")

    def test_networks_within_others_are_named_once(self) -> None:
        # Elements of a set may not overlap.
        text = rules(node(services=[OPEN], firewall={"allow_from": ["10.1.0.0/16", "10.0.0.0/8", "fd00::/8"]}))
        assert "ip saddr { 10.0.0.0/8 } tcp" in text
        assert "ip6 saddr { fd00::/8 } tcp" in text


class TestRefusal:
    CLOSED = node("closed", firewall={"ssh_from": ["192.168.1.0/24", "fe80::/10"]})

    @pytest.mark.parametrize("client", ["192.168.1.9", "127.0.0.1", "::1", "fe80::1", None])
    def test_who_stays_in(self, client: str | None) -> None:
        seen = firewall.Seen({}, (22,), ip_address(client) if client else None)
        assert firewall.refusal(self.CLOSED, seen) is None

    def test_who_would_be_locked_out(self) -> None:
        seen = firewall.Seen({}, (22,), ip_address("10.88.0.1"))
        assert firewall.refusal(self.CLOSED, seen) == (
            "firewall.ssh_from: this deploy's own SSH connection comes from 10.88.0.1, which is in none of "
            "192.168.1.0/24, fe80::/10; add its network"
        )
        assert firewall.refusal(node("closed"), seen) is None
        assert firewall.refusal(node(services=[OPEN]), seen) is None


class TestSeen:
    TEXTS = {"accounts": "", "listening": "", "sockets": "", "connection": ""}

    def test_a_node_that_says_nothing(self) -> None:
        assert firewall.parse(self.TEXTS) == firewall.Seen({}, (), None)

    def test_sshd_on_two_ports_behind_a_socket_of_systemd(self) -> None:
        listening = (
            'LISTEN 0      128          0.0.0.0:2222      0.0.0.0:*    users:(("sshd",pid=7,fd=3))\n'
            'LISTEN 0      128             [::]:2222         [::]:*    users:(("sshd",pid=7,fd=4))\n'
        )
        texts = {
            "accounts": "moehost:996\n",
            "listening": listening,
            "sockets": "0.0.0.0:22 (Stream)\n[::]:22 (Stream)\n",
            "connection": "fe80::1%eth0 53422 fe80::2%eth0 2022\n",
        }
        assert firewall.parse(texts) == firewall.Seen({"moehost": 996}, (22, 2022, 2222), ip_address("fe80::1"))

    @pytest.mark.parametrize(
        ("connection", "client"),
        [
            ("::ffff:192.0.2.1 1 ::ffff:192.0.2.2 22", ip_address("192.0.2.1")),
            ("UNKNOWN 65535 UNKNOWN 65535", None),
            ("192.0.2.1", ip_address("192.0.2.1")),
        ],
    )
    def test_where_the_deploy_comes_from(self, connection: str, client: object) -> None:
        assert firewall.parse(self.TEXTS | {"connection": connection}).client == client


class TestUnit:
    TEXT = render("firewall/moehost-firewall.service.j2", nft="/usr/sbin/nft", path=RULES)

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
    def test_it_is_sandboxed_and_every_line_is_understood(self, tmp_path: Path) -> None:
        path = tmp_path / "moehost-firewall.service"
        path.write_text(re.sub(r"^(Exec\w+=-?)/\S+", r"\1/bin/true", self.TEXT, flags=re.MULTILINE))
        verify = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert [line for line in verify.stderr.splitlines() if path.name in line] == []
        words = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", path]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_nobody_who_starts_before_the_network_waits_for_it(self) -> None:
        # With default dependencies a boot with cloud-init, which wants the network early, would be a cycle.
        assert "\nDefaultDependencies=no\n" in self.TEXT
        assert "\nBefore=network-pre.target shutdown.target\n" in self.TEXT
