"""What a running server may do: answer on loopback, read its model, and no more."""

import time

import pytest

from tests.fixtures import confined


@pytest.fixture
def address_beside(node, outside):
    """A computer that answers: what does not reach it was held back."""
    for _ in range(10):
        if confined.reach(node, "10.88.255.2", 9, inside=False)["tcp"] == "ECONNREFUSED":
            break
        time.sleep(1)  # its link is new
    return "10.88.255.2"


def test_packets_of_the_server_stay_on_loopback(node, address_beside):
    beside = confined.reach(node, address_beside, 9, inside=False)
    assert (beside["udp"], beside["tcp"]) == ("let through", "ECONNREFUSED")
    assert confined.reach(node, address_beside, 9, inside=True) == confined.SHUT


@pytest.mark.parametrize(
    "folder", ["/srv/models/tiny-qwen35moe", "/srv/models", "/opt/moehost", "/etc/moehost", "/usr/bin"]
)
def test_the_server_writes_nowhere_but_where_its_state_is(node, folder):
    assert "Read-only file system" in confined.written(node, f"{folder}/probe")
    assert confined.written(node, "/var/lib/moehost/tiny/probe") == ""
