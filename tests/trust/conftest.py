"""The node under test, and a neighbour of it."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.fixtures.neighbour import Neighbour, neighbour
from tests.fixtures.node import Node, instance


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
