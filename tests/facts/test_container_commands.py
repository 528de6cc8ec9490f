"""What a node has for cards in containers, asked of a real shell."""

import pytest
from pyinfra.api import StringCommand

from moehost.cdi import Specification, parse
from roles.nvidia_container_toolkit.facts import ContainerToolkit, PackageVersions, Runtimes
from tests.facts.test_commands import Node
from tests.fixtures.cdi_specification import as_json, as_yaml

PREFIXES = ("/etc/", "/var/run/cdi/", "/sys/")


def ask(node, fact):
    """What a fact says of a node whose files lie below its folder."""
    command = StringCommand(fact().command()).get_raw_value()
    for prefix in PREFIXES:
        command = command.replace(prefix, f"{node.folder}{prefix}")

    class Moved(fact):
        def command(self):
            return command

    return Moved.default(Moved()) | node.ask(Moved)


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    for program in ("podman", "nvidia-ctk", "dpkg-query", "systemctl", "docker", "containerd"):
        node.program(program, "exit 127")
    return node


def specifications(node):
    """What is parsed of a node's specifications, with paths of the node."""
    texts = ask(node, ContainerToolkit)
    return parse({**texts, "specs": texts["specs"].replace(str(node.folder), "")}).specifications


def test_a_bare_machine(node):
    assert ask(node, ContainerToolkit) == ContainerToolkit().default()


def test_versions_as_the_programs_print_them(node):
    node.program("podman", "echo podman version 4.9.3")
    node.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.20.0; echo commit: d34b3046")
    node.program(
        "dpkg-query",
        "echo installed nvidia-container-toolkit-base 1.20.0-1; echo config-files libnvidia-container1 1.18.2-1",
    )
    node.write("/sys/module/nvidia/version", "580.95.05\n")
    node.write("/sys/bus/pci/devices/0000:41:00.0/class", "0x030200\n")
    node.write("/sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de\n")
    node.write("/sys/bus/pci/devices/0000:41:00.1/class", "0x040300\n")
    node.write("/sys/bus/pci/devices/0000:41:00.1/vendor", "0x10de\n")
    found = parse(ask(node, ContainerToolkit))
    assert (found.cards, found.podman, found.ctk, found.module) == (1, "4.9.3", "1.20.0", "580.95.05")
    assert found.packages == {"nvidia-container-toolkit-base": "1.20.0-1"}


@pytest.mark.parametrize(("suffix", "write"), [("yaml", as_yaml), ("json", as_json)])
def test_a_specification_in_either_format(node, suffix, write):
    path = f"/var/run/cdi/nvidia.{suffix}"
    node.write(path, write(version="0.7.0", devices=["0", "GPU-8836a272-ca08", "all"]))
    (found,) = specifications(node)
    assert (found.path, found.version, found.kind) == (path, "0.7.0", "nvidia.com/gpu")
    assert sorted(found.devices) == ["0", "GPU-8836a272-ca08", "all"]
    assert found.drivers == ("580.95.05",)


def test_specifications_of_both_folders_and_of_any_kind(node):
    node.write("/etc/cdi/nvidia.yaml", as_yaml(driver="570.133.07"))
    node.write("/etc/cdi/nvidia.yaml.off", as_yaml())
    node.write("/var/run/cdi/other.json", '{"cdiVersion":"v0.6.0","kind":"home.arpa/nic","devices":[{"name":"a"}]}')
    node.write("/var/run/cdi/empty.yaml")
    assert specifications(node) == (
        Specification("/etc/cdi/nvidia.yaml", "0.5.0", "nvidia.com/gpu", ("0", "all"), ("570.133.07",)),
        Specification("/var/run/cdi/empty.yaml", "", "", (), ()),
        Specification("/var/run/cdi/other.json", "0.6.0", "home.arpa/nic", ("a",), ()),
    )


def test_versions_that_apt_has_each_once(node):
    node.program(
        "apt-cache",
        """echo "   a |   1.21.0-1 | http://one.home.arpa  Packages"
        echo "   a |   1.20.0-1 | http://one.home.arpa  Packages"
        echo "   a |   1.20.0-1 | http://two.home.arpa  Packages"
        echo "N: Unable to locate package b" >&2""",
    )
    assert node.ask(PackageVersions, packages=["a", "b"]) == {"a": ["1.21.0-1", "1.20.0-1"]}


def test_no_runtime_but_podman(node):
    assert ask(node, Runtimes) == Runtimes().default()


def test_a_docker_with_cdi(node):
    node.program("docker", '[ "$1" = info ] && printf "/etc/cdi\\n/var/run/cdi\\n\\n" || echo Docker version 28.3.1')
    node.program("systemctl", "echo active")
    node.write("/etc/docker/daemon.json", '{"features": {"cdi": true}}')
    found = ask(node, Runtimes)
    assert found["docker_state"] == "active\n"
    assert found["docker_folders"].split() == ["/etc/cdi", "/var/run/cdi"]
    assert found["docker_config"] == '{"features": {"cdi": true}}\n'
