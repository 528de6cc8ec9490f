"""Debian 12 with its Podman 4.3 and stub cards: what the toolkit writes is not what this Podman reads, unless told.

Podman is the real one; cards, driver and toolkit are stubs. In its own container, so it needs no scenario.
"""

import pytest

from moehost import sandbox
from tests.fixtures.node import changes
from tests.stub_nvidia.cards import Node
from tests.stub_nvidia.node import prepare

NAME = "moehost-nvidia-bookworm"
CDI = "/var/run/cdi/nvidia.yaml"
ENV = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
LOOK = "ls /dev/nvidia0 /dev/nvidia1"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node of Debian 12 with two stub cards, provisioned."""
    sandbox.down(NAME)
    sandbox.up(NAME, print, "bookworm")
    node = Node(NAME, tmp_path_factory.mktemp("inventory"))
    node.settings = prepare(NAME, 2)
    node.settings["nvidia"]["container_toolkit"] = True
    changes(node.deploy_cards(node.settings))
    yield node
    sandbox.down(NAME)


def test_second_deploy_changes_nothing(node):
    assert changes(node.deploy_cards(node.settings)) == []


def test_driver_is_of_the_branch_that_is_kept_up_longest(node):
    assert node.run("cat /sys/module/nvidia/version").startswith("580.")
    assert "610" in node.run("apt-cache madison nvidia-driver-cuda")


def test_podman_gives_a_container_the_cards(node):
    assert node.run("podman --version").startswith("podman version 4.3.")
    assert node.run(f"grep cdiVersion {CDI}") == "cdiVersion: 0.5.0"
    assert node.in_container(LOOK).split() == ["/dev/nvidia0", "/dev/nvidia1"]


def test_without_the_flag_it_gives_none_and_a_deploy_mends_that(node):
    node.run(f"sed -i /FEATURE_FLAGS/d {ENV} && systemctl restart nvidia-cdi-refresh")
    assert node.run(f"grep cdiVersion {CDI}") == "cdiVersion: 0.7.0"
    with pytest.raises(AssertionError, match="unresolvable CDI devices"):
        node.in_container(LOOK)
    assert changes(node.deploy_cards(node.settings)) == ["Containers | Have the cards in containers, by CDI"]
    assert node.in_container(LOOK).split() == ["/dev/nvidia0", "/dev/nvidia1"]
