"""What a deploy mends by itself on a node with stub cards, once, and then nothing changes."""

from dataclasses import dataclass

import pytest
from broken import CDI, INSTALL, PODMAN, podman

from tests.fixtures.node import changes

pytestmark = pytest.mark.usefixtures("healthy")
DRIVER, TOOLKIT = "Driver | Have NVIDIA's driver", "Containers | Have the cards in containers, by CDI"
FLAG = "NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS=no-additional-gids-for-device-nodes"
ENV = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"


@dataclass(frozen=True)
class Mended:
    """What is done to a node, the operation that changes something then, and a command that succeeds afterwards."""

    name: str
    breaks: str
    operation: str
    afterwards: str


MENDED = [
    Mended(
        "nothing_is_loaded",
        "systemctl stop nvidia-persistenced; modprobe -r nvidia_uvm; modprobe -r nvidia",
        DRIVER,
        "test -e /sys/module/nvidia && test -e /sys/module/nvidia_uvm && systemctl is-active nvidia-persistenced",
    ),
    Mended("uvm_is_not_loaded", "modprobe -r nvidia_uvm", DRIVER, "test -e /sys/module/nvidia_uvm"),
    Mended(
        "cards_may_fall_asleep",
        "systemctl disable --quiet --now nvidia-persistenced",
        DRIVER,
        "systemctl is-active nvidia-persistenced && systemctl is-enabled nvidia-persistenced",
    ),
    Mended(
        "stale_cdi_specification",
        f"sed -i 's/[.]so[.]595[.].*/.so.570.00.00/' {CDI}",
        TOOLKIT,
        f"! grep 570 {CDI} && grep -q libcuda.so.$(cat /sys/module/nvidia/version) {CDI}",
    ),
    Mended(
        "cdi_specification_by_hand",
        f"mkdir -p /etc/cdi && cp {CDI} /etc/cdi/",
        TOOLKIT,
        "test ! -e /etc/cdi/nvidia.yaml && ls /etc/cdi/nvidia.yaml.*",
    ),
    Mended(
        "podman_of_ubuntu_24.04",
        podman("4.9.3"),
        TOOLKIT,
        f"grep -qx {FLAG} {ENV} && grep -q '^cdiVersion: 0.5.0$' {CDI} && ! grep -i additionalGids {CDI}",
    ),
    Mended(
        "podman_of_debian_13_again",
        f"rm {PODMAN}",
        TOOLKIT,
        f"! grep {FLAG} {ENV} && grep -q '^cdiVersion: 0.7.0$' {CDI}",
    ),
    Mended(
        "older_toolkit",
        f"{INSTALL} nvidia-container-toolkit-base=1.18.2-1",
        TOOLKIT,
        "nvidia-ctk --version | grep -q 1.20.0",
    ),
]


@pytest.mark.parametrize("case", MENDED, ids=lambda each: each.name)
def test_it_is_mended_once(node, case):
    node.run(case.breaks)
    assert changes(node.deploy_cards(node.settings)) == [case.operation]
    node.run(case.afterwards)
    assert changes(node.deploy_cards(node.settings)) == []
