"""Who reaches what on a node, from two computers on its network; who gets out; what is left of the packet filter."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.fixtures import confined
from tests.fixtures.firewalled import GUARD, settings, table, without_doors
from tests.fixtures.neighbour import Neighbour, neighbour
from tests.fixtures.node import changes
from tests.fixtures.waiting import until

SERVICE = {"host": "0.0.0.0", "port": 8081}
ALLOWED, NOT_ALLOWED = "10.88.255.2", "10.88.255.3"
# The counter has been counting for a while; a table that is loaded anew would begin at zero.
SOMEBODYS = (
    "table inet somebody { chain input { type filter hook input priority 0; policy accept; "
    "udp dport 9 counter packets 7 bytes 700; }; }"
)
FILES = "/etc/moehost/firewall.nft /etc/systemd/system/moehost-firewall.service /usr/local/libexec/moehost/try-rules"


@pytest.fixture(scope="module")
def other() -> Iterator[Neighbour]:
    """Another computer on the node's network, which is not allowed."""
    with neighbour(3) as found:
        yield found


@pytest.fixture(scope="module")
def somebodys(node):
    """A table of somebody else, as it was before."""
    if "nftables" not in node.run("dpkg-query -W -f '${Package} ' nftables 2>/dev/null || true"):
        node.run("apt-get install --yes --quiet --no-install-recommends nftables >/dev/null")
    node.run(f"nft '{SOMEBODYS}'")
    yield node.run("nft --handle list table inet somebody")
    node.run("nft delete table inet somebody")


@pytest.fixture(scope="module")
def opened(node, somebodys, without_gateway):
    """Settings with which the service is open to one computer; afterwards everything is as it was."""
    wish = settings(node, SERVICE, allow_from=[f"{ALLOWED}/32"], confirm_s=10)
    assert GUARD[0] in changes(node.deploy(wish))
    yield wish
    changes(node.deploy(without_doors(node)))
    assert node.run(f"ls {FILES} 2>/dev/null || true") == table(node) == ""
    assert changes(node.deploy(without_doors(node))) == []


@pytest.fixture(scope="module")
def listening(node):
    """Servers of somebody else's on the node, on the ports 8000 and 8001."""
    for port in (8000, 8001):
        node.run(
            f"systemd-run --quiet --collect --unit=somebody-{port} python3 -m http.server -d /usr/share/doc {port}"
        )
    for port in (8000, 8001):
        url = f"http://127.0.0.1:{port}/"
        node.run(f"curl --silent --output /dev/null --retry 20 --retry-delay 1 --retry-connrefused {url}")
    yield
    node.run("systemctl stop somebody-8000 somebody-8001 2>/dev/null || true")


def reaches(computer: Neighbour, address: str, port: int, seconds: int = 3) -> bool:
    """Whether a server answers a computer."""
    url = f"http://{address}:{port}/health"
    done = computer.run("curl", "--silent", "--output", "/dev/null", "--max-time", str(seconds), url)
    assert done.returncode in (0, 7, 28), done
    return done.returncode == 0


def counted(node, rule: str) -> int:
    """Packets that a rule did not let through."""
    (packets,) = re.findall(rf"{rule}.* counter packets (\d+) ", node.run("nft list table inet moehost"))
    return int(packets)


def test_a_second_deploy_changes_nothing(node, opened):
    assert changes(node.deploy(opened)) == []


def test_an_open_service_is_reached_from_its_networks_alone(node, opened, outside, other, address):
    before = counted(node, "dport 8081")
    assert reaches(outside, address, 8081)
    assert counted(node, "dport 8081") == before
    assert not reaches(other, address, 8081)
    # The unit would not have answered either; it was the table that came first.
    assert counted(node, "dport 8081") > before
    node.run("curl --silent --fail --max-time 5 http://127.0.0.1:8081/health")


def test_the_unit_of_an_open_service_talks_to_its_networks_alone(node, opened, outside, other):
    assert confined.reach(node, ALLOWED, 9, inside=True)["udp"] == "let through"
    assert confined.reach(node, NOT_ALLOWED, 9, inside=True)["udp"] == "EPERM"
    assert confined.reach(node, NOT_ALLOWED, 9, inside=False)["udp"] == "let through"


def test_other_ports_are_not_moehosts_business(node, opened, outside, other, address, listening):
    assert reaches(other, address, 8000)
    assert reaches(outside, address, 8000)


def test_a_table_of_somebody_else_stays_as_it_was(node, opened, somebodys):
    assert node.run("nft --handle list table inet somebody") == somebodys


def test_an_open_server_starts_no_connection_but_to_its_own_machine(node, opened, outside):
    # Nothing but the account makes a difference.
    words = f"ip netns exec {outside.name} {sys.executable} -m http.server --directory /usr/share/doc 8090".split()
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask = "curl --silent --output /dev/null --max-time 5"
        url = f"http://{ALLOWED}:8090/"
        node.run(f"for try in 1 2 3 4 5 6 7 8 9 10; do {ask} {url} && exit 0; sleep 1; done; exit 1")
        as_server = f"setpriv --reuid moehost --regid moehost --clear-groups {ask}"
        node.run(f"{as_server} http://127.0.0.1:8081/health")
        assert node.run(f"{as_server} {url}; echo $?") == "7"
        link_local = outside.run("ip", "-6", "-brief", "address", "show", "dev", "eth0", "scope", "link").stdout
        six = f"-g 'http://[{link_local.split()[2].partition('/')[0]}%eth0]:8090/'"
        # Nothing listens there on IPv6: root is told so by the neighbour, the servers' account by its own machine.
        before = counted(node, "skuid")
        node.run(f"{ask} {six} || true")
        assert counted(node, "skuid") == before
        node.run(f"{as_server} {six} || true")
        assert counted(node, "skuid") > before
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("lost", ["nft delete table inet moehost", "nft flush chain inet moehost input"])
def test_rules_that_are_lost_come_back_with_a_deploy(node, opened, lost):
    before = table(node)
    node.run(lost)
    assert changes(node.deploy(opened)) == GUARD
    assert table(node) == before


def test_closed_is_closed_but_for_what_is_named(node, opened, outside, other, address, listening):
    wish = opened | {"firewall": {**opened["firewall"], "policy": "closed", "open_ports": [8001]}}
    assert reaches(outside, address, 8000)
    assert changes(node.deploy(wish)) == GUARD
    assert not reaches(outside, address, 8000)
    assert reaches(other, address, 8001)
    assert reaches(outside, address, 8081)
    assert not reaches(other, address, 8081)
    # What the node itself asks for comes in.
    node.run("apt-get update --quiet --quiet")
    assert changes(node.deploy(wish)) == []


def test_a_boot_comes_up_with_the_rules(node, opened, outside, other, address):
    """systemd boots anew; the kernel stays, so the table is taken from it before."""
    before, started = table(node), node.run("systemctl show --property UserspaceTimestampMonotonic")
    node.run("nft delete table inet moehost")
    node.run("systemctl soft-reboot --no-block")
    for _ in range(90):
        time.sleep(1)
        words = ["podman", "exec", node.name, "systemctl", "show", "--property", "UserspaceTimestampMonotonic"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() not in ("", started):
            break
    node.run("systemctl is-system-running --wait || true")
    # A container's name comes from outside, and systemd has taken the one in its /etc/hostname.
    node.run(f"hostname {node.name}")
    assert table(node) == before != ""
    assert "cycle" not in node.run("journalctl --no-pager --boot --unit moehost-firewall")
    assert reaches(outside, address, 8081)
    assert not reaches(other, address, 8081)


def test_the_owners_own_rules_take_it_away_for_a_moment_only(node, opened, somebodys):
    """The configuration that nftables comes with begins with `flush ruleset`."""
    assert "flush ruleset" in node.run("cat /etc/nftables.conf")
    before = table(node)
    node.run("systemctl start nftables.service")
    assert table(node) == ""
    assert changes(node.deploy(opened)) == GUARD
    for doing in ("reload", "restart"):
        node.run(f"nft delete table inet moehost && systemctl {doing} nftables.service")
        # A job of its own, which systemd has begun.
        until(lambda: table(node) != "", 5)
    node.run(f"systemctl stop nftables.service; nft '{SOMEBODYS}'")
    assert changes(node.deploy(opened)) == GUARD
    assert table(node) != before  # which was a closed one
