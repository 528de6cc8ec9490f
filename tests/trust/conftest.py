"""The node under test, and a neighbour of it."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.fixtures.firewalled import without_doors
from tests.fixtures.gateway_client import Clients
from tests.fixtures.neighbour import Neighbour, neighbour
from tests.fixtures.node import ROOT, Node, changes, instance


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The first instance of the scenario."""
    return instance(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="session")
def address(node: Node) -> str:
    """The node's address in Podman's network."""
    words = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", node.name]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def outside() -> Iterator[Neighbour]:
    """A computer on the node's network."""
    with neighbour() as found:
        yield found


def moehost(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of moehost's about the node."""
    command = ["moehost", *words, f"@podman/{node.name}", "--inventory", str(node.inventory())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def clients(
    node: Node, address: str, outside: Neighbour, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clients]:
    """Clients outside, and a user `alice` who has a key."""
    ca = tmp_path_factory.mktemp("ca") / "root.crt"
    ca.write_text(moehost(node, "keys", "ca").stdout)
    moehost(node, "keys", "revoke", "alice")
    added = moehost(node, "keys", "add", "alice")
    key = added.stdout.strip()
    assert key, added.stderr
    yield Clients(outside, address, ca, {"alice": key})
    moehost(node, "keys", "revoke", "alice")


@pytest.fixture(scope="module")
def without_gateway(node: Node) -> Iterator[None]:
    """The node as it is where nothing listens beyond loopback; afterwards it is as the scenario has it."""
    changes(node.deploy(without_doors(node)))
    yield
    changes(node.deploy())
