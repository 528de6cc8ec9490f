"""The driver on a stub Ubuntu: a node of Debian 13 that says it is Ubuntu 24.04, with Secure Boot and stub cards.

Packages have the names that Ubuntu's archive has, in a signed archive on the node's loopback; apt, dpkg, kmod and
systemd are Debian's. In its own container, so it needs no scenario. The tests run in this order, and change it.
"""

import pytest

from moehost import sandbox
from tests.fixtures.node import changes
from tests.stub_nvidia.cards import Node
from tests.stub_nvidia.node import archive, prepare

NAME = "moehost-ubuntu"
VERSION, KERNEL, HWE_KERNEL = "580.95.05", "6.8.0-51-generic", "6.14.0-37-generic"
MODULES = "linux-modules-nvidia-580-server-open"
DRIVER = {
    f"{MODULES}-generic",
    f"{MODULES}-{KERNEL}",
    "nvidia-headless-no-dkms-580-server-open",
    "nvidia-utils-580-server",
    "nvidia-compute-utils-580-server",
    "nvidia-kernel-common-580-server",
    "nvidia-kernel-source-580-server-open",
    f"nvidia-firmware-580-server-{VERSION}",
    "libnvidia-cfg1-580-server",
    "libnvidia-compute-580-server",
}
KERNELS = {"linux-generic", "linux-image-generic", "linux-headers-generic"}
INSTALLED = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | sed -n '/nvidia/s/^installed //p'"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The stub Ubuntu with two stub cards, the kernel of the release, and nothing of a driver."""
    sandbox.down(NAME)
    sandbox.up(NAME, print)
    node = Node(NAME, tmp_path_factory.mktemp("inventory"))
    node.settings = prepare(NAME, 2, is_ubuntu=True)
    node.settings["nvidia"]["container_toolkit"] = True
    node.stub.set(secure_boot="on")
    node.run("apt-get install --yes --no-install-recommends linux-generic")
    yield node
    sandbox.down(NAME)


@pytest.fixture(scope="module")
def deployed(node):
    """The node after a first deploy, and what that changed."""
    return changes(node.deploy_cards(node.settings))


def drivers(node):
    """The installed packages of a driver, without those of the container toolkit."""
    return {name for name in node.run(INSTALLED).split() if "container" not in name}


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (None, "Ubuntu's archive has no driver 580, driver 595 for Ubuntu 24.04.3 LTS, kernel"),
        (
            "580",
            f"Ubuntu's archive has no {MODULES}-generic or {MODULES}-{KERNEL}, "
            "nvidia-headless-no-dkms-580-server-open, nvidia-utils-580-server, nvidia-compute-utils-580-server for",
        ),
    ],
)
def test_an_archive_without_the_branch_is_refused(node, branch, says):
    archive(NAME, "old")
    try:
        failed = node.deploy_cards(node.merged_settings({"nvidia": {"branch": branch}}))
    finally:
        archive(NAME, "ubuntu")
    assert failed.returncode == 1
    assert says in failed.stderr
    assert "of drivers it has 535" in failed.stderr
    assert drivers(node) == set()


def test_second_deploy_changes_nothing(node, deployed):
    assert "Driver | Have NVIDIA's driver" in deployed
    assert changes(node.deploy_cards(node.settings)) == []


@pytest.mark.usefixtures("deployed")
class TestDeployed:
    """What the first deploy has made of the node."""

    def test_packages_are_those_of_the_branch_for_servers(self, node):
        assert drivers(node) == DRIVER
        assert "590" in node.run("apt-cache pkgnames nvidia-utils-590-server")

    def test_driver_and_kernel_are_held(self, node):
        # The module of one kernel may go with its kernel.
        assert set(node.run("apt-mark showhold").split()) >= (DRIVER | KERNELS) - {f"{MODULES}-{KERNEL}"}

    def test_modules_are_loaded_open_and_of_the_kernels_own_tree(self, node):
        assert node.run("cat /sys/module/nvidia/version /sys/module/nvidia/taint").split() == [VERSION, "OE"]
        assert node.run("modinfo -F license nvidia") == "Dual MIT/GPL"
        assert "/kernel/nvidia-580srv-open/" in node.run("modinfo -F filename nvidia")
        node.run("test -e /sys/module/nvidia_uvm && grep -q nouveau /etc/modprobe.d/moehost-nvidia.conf")

    def test_secure_boot_is_on_and_asks_for_no_key(self, node):
        assert node.run("mokutil --sb-state") == "SecureBoot enabled"
        node.run("test ! -e /var/lib/dkms/mok.pub")

    def test_persistenced_runs_without_being_enabled(self, node):
        state = node.run("systemctl is-enabled nvidia-persistenced; systemctl is-active nvidia-persistenced")
        assert state.split() == ["static", "active"]
        # Ubuntu's unit switches off what it is there for.
        assert "--no-persistence-mode" in node.run("systemctl cat nvidia-persistenced")
        modes = node.run("nvidia-smi --query-gpu=persistence_mode --format=csv,noheader")
        assert modes.split() == ["Enabled", "Enabled"]

    def test_gate_is_passed_with_both_cards(self, node):
        assert "2 card(s) ready" in node.run("systemctl is-active moehost-gpu && journalctl -o cat -u moehost-gpu")

    def test_nvidias_repository_is_not_used(self, node):
        node.run("test ! -e /etc/apt/sources.list.d/moehost-cuda.sources")
        node.run("test ! -e /etc/apt/preferences.d/60-moehost-nvidia-driver")


def test_a_flavour_that_comes_later_gets_its_module(node, deployed):
    node.run("apt-get install --yes --no-install-recommends linux-generic-hwe-24.04")
    assert changes(node.deploy_cards(node.settings)) == ["Driver | Have NVIDIA's driver"]
    assert {f"{MODULES}-generic-hwe-24.04", f"{MODULES}-{HWE_KERNEL}"} <= drivers(node)
    assert "linux-image-generic-hwe-24.04" in node.run("apt-mark showhold").split()
    node.run(f"test -e /lib/modules/{HWE_KERNEL}/kernel/nvidia-580srv-open/nvidia.ko")
    assert changes(node.deploy_cards(node.settings)) == []


def test_power_limits_are_set_from_within_the_gates_sandbox(node, deployed):
    wish = node.merged_settings({"nvidia": {"power_limit_w": [300, 450]}})
    assert changes(node.deploy_cards(wish))
    limits = node.run("nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits")
    assert [float(each) for each in limits.split()] == [300, 450]
    assert changes(node.deploy_cards(wish)) == []
