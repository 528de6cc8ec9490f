"""Hosts that are broken: what is done to a healthy node with stub cards, what a deploy then says, what mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KERNEL = "/lib/modules/$(uname -r)"
NEWER = "6.99.0-stub-amd64"
DRIVER = "$(dpkg-query -W -f '${Package} ${Version}\\n' | sed -n 's/ 595[.].*//p')"
INSTALL = "apt-get install -qq --allow-change-held-packages --allow-downgrades --no-install-recommends -y"
REBOOT = "modprobe -r nvidia_uvm; modprobe -r nvidia; modprobe -q nvidia && modprobe -q nvidia_uvm"
CDI = "/var/run/cdi/nvidia.yaml"
# Stands before the real one on the path, and says that it is another.
PODMAN = "/usr/local/bin/podman"
# The gate has been passed for as long as it is active.
BOOTED = "systemctl stop moehost-gpu"
PURGE = f"{REBOOT.partition(' modprobe -q')[0]} apt-get purge -qq --allow-change-held-packages -y {DRIVER}"
# The driver in another version of its branch than the one that is loaded.
UPDATE = (
    "case $(cat /sys/module/nvidia/version) in 595.45.04) other=595.58.03 ;; *) other=595.45.04 ;; esac; "
    f"{INSTALL} $(for each in {DRIVER}; do echo $each=$other-1; done)"
)
ENGINE = """
from roles.ik_llama.build import release
from roles.node import this_node

if node := this_node():
    release(name="Build an engine", engine=node.engine)
"""


def podman(number: str) -> str:
    """The command that puts a stub of Podman's `--version` before the real one."""
    return f"printf '#!/bin/sh\\necho podman version {number}\\n' >{PODMAN} && chmod 755 {PODMAN}"


@dataclass(frozen=True)
class Broken:
    """A broken host.

    + breaks, mends: commands on the node; `stub` are values of the stub's state, which all go back afterwards
    + settings: changes to the scenario's settings, which the mended host has no more
    + says: what a deploy of it says, a regular expression; what is said of other hosts, too, comes after it
    + deploy: text of a deploy, if it is not the cards' own
    """

    name: str
    says: str
    breaks: str = "true"
    mends: str = "true"
    stub: dict[str, object] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    deploy: str | None = None


MISMATCH = "driver/library version mismatch: 595[.][0-9.]+ is loaded, and 595[.][0-9.]+ installed"
BROKEN = [
    Broken(
        "driver_and_library_mismatch",
        MISMATCH,
        breaks=UPDATE,
        mends=REBOOT,
    ),
    Broken(
        "newer_kernel_without_module_and_a_reboot_needed",
        f"{MISMATCH}.*the kernel {NEWER} is installed and has no NVIDIA module: don't reboot into it",
        breaks=f"{UPDATE} && mkdir -p /lib/modules/{NEWER} && touch /boot/vmlinuz-{NEWER}",
        mends=f"rm -r /lib/modules/{NEWER} /boot/vmlinuz-{NEWER}; {REBOOT}",
    ),
    Broken(
        "kernel_without_module",
        "the driver is installed, and the kernel .* has no module of it",
        breaks=f"{REBOOT.partition(' modprobe -q')[0]} rm -r {KERNEL}/updates && depmod",
        mends=f"dkms autoinstall; {REBOOT}",
    ),
    Broken(
        "closed_modules_on_blackwell",
        "the kernel modules are the closed ones, which don't know the card 0000:01:00[.]0, 0000:c1:00[.]0",
        breaks=f"{INSTALL} nvidia-kernel-dkms nvidia-kernel-open-dkms- && {REBOOT}",
        mends=f"{INSTALL} nvidia-kernel-open-dkms nvidia-kernel-dkms-; {REBOOT}",
        settings={"nvidia": {"driver": "keep"}},
    ),
    Broken(
        "closed_module_loaded_open_one_installed",
        "the closed module is loaded, and the open one installed; `systemctl reboot`",
        breaks=f"{INSTALL} nvidia-kernel-dkms nvidia-kernel-open-dkms- && {REBOOT}",
        mends=REBOOT,
    ),
    Broken(
        "nouveau_has_the_cards",
        "nouveau has the card 0000:01:00[.]0, nouveau has the card 0000:c1:00[.]0, and gives it back at a reboot",
        breaks=REBOOT.partition(" modprobe -q")[0] + " true",
        mends=REBOOT,
        stub={"driver": "nouveau"},
    ),
    Broken(
        "nvidia_smi_without_cards",
        "nvidia-smi shows no card: No devices were found",
        stub={"smi": "no-devices"},
    ),
    Broken(
        "wrong_key_fingerprint",
        "8793F200[.]pub holds the key .*, not 0{40}, so nothing is installed from there",
        settings={"engine": {"cuda_key": "0" * 40}},
    ),
    Broken(
        "one_card_of_two",
        "expected 2 card[(]s[)], nvidia-smi finds 1",
        breaks=BOOTED,
        stub={"cards": 1},
    ),
    Broken(
        "no_card_at_all",
        "gpu: 'require', and there is no NVIDIA card on the PCI bus",
        stub={"bus": 0},
        settings={"gpu": "require"},
    ),
    Broken(
        "cuda_fails_while_nvidia_smi_works",
        "CUDA answers with error 999",
        breaks=BOOTED,
        stub={"cuda_error": 999},
    ),
    Broken(
        "cuda_library_newer_than_the_driver",
        "CUDA answers with error 804: the library is newer than the driver allows",
        breaks=BOOTED,
        stub={"cuda_error": 804},
    ),
    Broken(
        "power_limit_out_of_range",
        "card 0 takes no power limit of 900 W: Provided power limit 900[.]00 W is not a valid power limit",
        settings={"nvidia": {"power_limit_w": [900]}},
    ),
    Broken(
        "secure_boot_with_dkms",
        "Secure Boot is on, and the firmware does not know the key that DKMS signs",
        breaks=PURGE,
        stub={"secure_boot": "on"},
    ),
    Broken(
        "stale_cdi_specification",
        "/var/run/cdi/nvidia.yaml is of driver 570[.]00[.]00, and the module that is loaded is 595.*after a refresh",
        breaks=f"sed -i 's/[.]so[.]595[.].*/.so.570.00.00/' {CDI}",
        mends="systemctl restart nvidia-cdi-refresh",
        stub={"ctk": "fails"},
    ),
    Broken(
        "cdi_specification_newer_than_podman",
        "/var/run/cdi/nvidia.yaml is of CDI 0[.]7[.]0, and Podman 4[.]9[.]3 reads up to 0[.]6[.]0, after a refresh",
        breaks=podman("4.9.3"),
        mends=f"rm -f {PODMAN}",
        stub={"ctk": "ignores-flags"},
    ),
    Broken(
        "podman_too_old_for_any_cdi_specification",
        "Podman 4[.]2[.]1 reads CDI up to 0[.]4[.]0, and NVIDIA's toolkit writes 0[.]5[.]0",
        breaks=podman("4.2.1"),
        mends=f"rm -f {PODMAN}",
    ),
    Broken(
        "duplicate_cdi_specifications",
        "/var/run/cdi/nvidia.yaml and /var/run/cdi/other.yaml would both describe nvidia[.]com/gpu",
        breaks=f"cp {CDI} {CDI.replace('nvidia.yaml', 'other.yaml')}",
        mends=f"rm -f {CDI.replace('nvidia.yaml', 'other.yaml')}",
    ),
    Broken(
        "toolkit_with_a_known_hole",
        "nvidia.toolkit_version: '1[.]17[.]4-1' has CVE-2025-23266 and CVE-2025-23267",
        settings={"nvidia": {"toolkit_version": "1.17.4-1"}},
    ),
    Broken(
        "toolkit_version_that_is_not_there",
        "apt has no nvidia-container-toolkit-base 1[.]99[.]0-1; versions of .* that it has: "
        "1[.]21[.]0-1, 1[.]20[.]0-1",
        settings={"nvidia": {"toolkit_version": "1.99.0-1"}},
    ),
    Broken(
        "wrong_key_fingerprint_of_the_toolkit",
        "gpgkey holds the key .*, not 0{40}, so nothing is installed from there",
        settings={"nvidia": {"toolkit_key": "0" * 40}},
    ),
    Broken(
        "cuda_toolkit_too_old",
        "CUDA 12[.]4 makes no code for compute capability 120",
        settings={"engine": {"source": "git", "cuda_version": "12.4"}},
        deploy=ENGINE,
    ),
]
