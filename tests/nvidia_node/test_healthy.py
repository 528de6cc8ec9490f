"""What a provisioned node with stub cards is, seen from outside."""

import json
import os
import re

import pytest
import yaml

with open(os.environ["MOLECULE_INVENTORY_FILE"]) as _file:  # noqa: PTH123
    testinfra_hosts = [f"podman://{name}" for name in yaml.safe_load(_file)["all"]["hosts"]]

UNIT = "llama-server-tiny"


@pytest.fixture(scope="module")
def driver(host):
    """Version of the driver that is loaded."""
    return host.check_output("cat /sys/module/nvidia/version")


def test_driver_is_of_the_branch_and_of_one_version(host, driver):
    assert driver.startswith("595.")
    assert host.check_output("modinfo -F version nvidia") == driver
    smi = host.check_output("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    assert smi.splitlines() == [driver, driver]


def test_kernel_modules_are_the_open_ones(host):
    assert host.check_output("modinfo -F license nvidia") == "Dual MIT/GPL"
    assert host.check_output("cat /sys/module/nvidia/taint") == "OE"
    assert host.file("/sys/module/nvidia_uvm").exists
    assert not host.package("nvidia-kernel-dkms").is_installed


@pytest.mark.parametrize("package", ["nvidia-driver", "nvidia-open", "cuda-drivers"])
def test_what_a_server_has_no_use_for_is_not_installed(host, package):
    assert not host.package(package).is_installed


def test_no_upgrade_touches_the_driver(host):
    upgrade = host.check_output("apt-get upgrade --simulate --allow-change-held-packages")
    assert not re.search(r"^(Inst|Remv) \S*(nvidia|libcuda)", upgrade, re.MULTILINE)
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1"} <= set(
        host.check_output("apt-mark showhold").split()
    )


def test_cards_are_kept_awake(host):
    service = host.service("nvidia-persistenced")
    assert service.is_running
    assert service.is_enabled


def test_gate_is_passed_and_stands_before_the_service(host):
    gate = host.service("moehost-gpu")
    assert gate.is_running
    assert gate.is_enabled
    requires = host.check_output(f"systemctl show --property Requires,After --value {UNIT}")
    assert requires.count("moehost-gpu.service") == 2
    assert "2 card(s) ready" in host.check_output("journalctl --no-pager --output cat --unit moehost-gpu")


def test_service_is_planned_for_both_cards(host):
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled
    plan = json.loads(host.file("/etc/moehost/tiny/plan.json").content_string)
    assert [row["device"] for row in plan["ledger"]] == ["CUDA0", "CUDA1", "CPU"]
    assert plan["argv"][plan["argv"].index("-ngl") + 1] == "99"
    assert plan["argv"][plan["argv"].index("-ts") + 1] == "1,1"


def test_use_of_the_cards_was_compared_with_the_ledger(host):
    measured = json.loads(host.file("/etc/moehost/tiny/measured.json").content_string)
    assert [row["used_mib"] for row in measured.values()] == [4096, 4096]


def test_podman_gives_a_container_the_cards(node, driver):
    assert node.run("podman --version").startswith("podman version 5.")
    seen = node.in_container("ls /dev/nvidia[01] /dev/nvidia-uvm /usr/lib/x86_64-linux-gnu/libcuda.so.*")
    assert {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-uvm"} <= set(seen.split())
    assert f"libcuda.so.{driver}" in seen


def test_nothing_failed(host):
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
