"""The state of a driver asked of a real shell: a tree of /sys, /lib/modules and /boot, and stand-ins for programs."""

import os

import pytest

from moehost.driver import Card, Kernel, findings, parse
from roles.nvidia_driver.facts import NOUVEAU, Driver
from tests.facts import test_commands


class Node(test_commands.Node):
    """A node whose cards and kernels are files in its folder."""

    prefixes = ["/etc/", "/sys/", "/lib/modules", "/boot/", "/run/", "/usr/bin/nvidia", "/var/lib/dkms"]

    def card(self, address, device, driver=None, vendor="0x10de", kind="0x030000"):
        """A device on the bus."""
        folder = f"/sys/bus/pci/devices/{address}"
        for name, value in {"class": kind, "vendor": vendor, "device": device}.items():
            self.write(f"{folder}/{name}", f"{value}\n")
        if driver:
            (self.folder / folder[1:] / "driver").symlink_to(f"../../drivers/{driver}")

    def state(self):
        """What moehost makes of it."""
        return parse(self.ask(Driver))


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    node.write("/etc/os-release", 'ID=debian\nVERSION_ID="13"\n')
    for program in ("modinfo", "mokutil", "dpkg-query", "apt-mark", "systemctl", "update-initramfs"):
        node.program(program, "exit 1")
    node.program("uname", "echo 6.12.57+deb13-amd64")
    return node


def test_a_node_without_cards(node):
    node.card("0000:00:02.0", "0x1234", vendor="0x1a03")
    node.card("0000:01:00.1", "0x22e8", kind="0x040300")
    driver = node.state()
    assert driver.cards == ()
    assert driver.kernel == "6.12.57+deb13-amd64"
    assert not (driver.packages or driver.stale_initrds or driver.has_run_file or driver.has_secure_boot)


def test_cards_and_what_has_them(node):
    node.card("0000:01:00.0", "0x2bb1", "nvidia")
    node.card("0000:c1:00.0", "0x2bb1", "nouveau", kind="0x030200")
    node.card("0000:e1:00.0", "0x2bb1")
    assert node.state().cards == (
        Card("0000:01:00.0", 0x2BB1, "nvidia"),
        Card("0000:c1:00.0", 0x2BB1, "nouveau"),
        Card("0000:e1:00.0", 0x2BB1, ""),
    )


def test_kernels_by_age_with_and_without_a_module(node):
    for kernel in ("6.12.9-amd64", "6.12.57+deb13-amd64", "6.12.60+deb13-amd64"):
        node.write(f"/lib/modules/{kernel}/modules.dep")
        node.write(f"/boot/vmlinuz-{kernel}")
    node.write("/lib/modules/6.13.0-left-over/modules.dep")
    node.write("/lib/modules/6.12.9-amd64/updates/dkms/nvidia-current.ko.xz")
    node.write("/lib/modules/6.12.57+deb13-amd64/kernel/nvidia-580srv-open/nvidia.ko.zst")
    node.write("/lib/modules/6.12.60+deb13-amd64/kernel/drivers/nvidia-wmi-ec.ko.xz")
    assert node.state().kernels == (
        Kernel("6.12.9-amd64", True),
        Kernel("6.12.57+deb13-amd64", True),
        Kernel("6.12.60+deb13-amd64", False),
    )


def test_a_driver_that_works(node):
    node.card("0000:01:00.0", "0x2bb1", "nvidia")
    node.write("/sys/module/nvidia/version", "580.95.05\n")
    node.write("/sys/module/nvidia/taint", "OE\n")
    node.write("/sys/module/nvidia_uvm/taint", "OE\n")
    node.write("/usr/bin/nvidia-smi")
    node.program("nvidia-smi", "echo 580.95.05")
    node.program("modinfo", 'case "$*" in *version*) echo 580.95.05 ;; *) echo "Dual MIT/GPL" ;; esac')
    node.program("systemctl", '[ "$1" = cat ] || echo active')
    assert [each.says for each in findings(node.state())] == ["driver 580.95.05 with open kernel modules, 1 card"]


def test_what_nvidia_smi_complains_of_is_read_wherever_it_says_it(node):
    node.write("/usr/bin/nvidia-smi")
    node.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18")
    assert "version mismatch" in node.state().smi


def test_secure_boot_without_mokutil(node):
    path = node.write("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    for byte, is_on in ((b"\x01", True), (b"\x00", False)):
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"\x06\x00\x00\x00" + byte)
        assert node.state().has_secure_boot == is_on


def test_initrds_that_are_older_than_the_file_that_switches_nouveau_off(node):
    for kernel, age in (("6.1.0-1-amd64", 60), ("6.12.57+deb13-amd64", -60), ("5.10.0-gone", 60)):
        path = node.write(f"/boot/initrd.img-{kernel}")
        os.utime(path, (1_800_000_000 - age,) * 2)
        if "gone" not in kernel:
            node.write(f"/lib/modules/{kernel}/modules.dep")
    assert node.state().stale_initrds == ()
    os.utime(node.write(NOUVEAU), (1_800_000_000,) * 2)
    assert node.state().stale_initrds == ("6.1.0-1-amd64",)


def test_a_reboot_that_the_distribution_asks_for(node):
    node.write("/run/reboot-required", "*** System restart required ***\n")
    assert node.state().reboot_required.endswith("/run/reboot-required")
    node.write("/run/reboot-required.pkgs", "linux-base\nlinux-base\nlibc6\n")
    assert node.state().reboot_required == "linux-base libc6"


def test_packages_and_holds(node):
    node.program(
        "dpkg-query",
        'echo "installed nvidia-driver-cuda 580.95.05-1"; echo "config-files nvidia-smi 550.163.01-2"; exit 1',
    )
    node.program("apt-mark", '[ "$*" = showhold ] && echo nvidia-driver-cuda')
    driver = node.state()
    assert dict(driver.packages) == {"nvidia-driver-cuda": "580.95.05-1"}
    assert driver.holds == {"nvidia-driver-cuda"}
