"""The state of NVIDIA's driver on a node, parsed from text that others have read: what is wrong, and what mends it.

Sources: NVIDIA's open-gpu-kernel-modules (the open modules need Turing or later; Blackwell and later have no others;
licence `Dual MIT/GPL`), the kernel's tainted-kernels.rst (P: a proprietary module).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost import os_release
from moehost.finding import DEPLOY, Finding, Level

# PCI device ids grow with the generations: the first of Turing, and the first of Blackwell.
FIRST_TURING = 0x1E00
FIRST_BLACKWELL = 0x2900
# Drivers of the kernel's own that take a card, as /sys/bus/pci/drivers names them.
OTHERS = ("nouveau", "NovaCore", "nova_core")
OPEN_LICENCE = "Dual MIT/GPL"
# Packages that bring modules.
MODULES = re.compile(r"linux-modules-nvidia-\d|nvidia-(kernel-)?(open-)?dkms")
VERSION = r"\d{3}[.]\d+(?:[.]\d+)?"


class DriverError(ValueError):
    """Why a driver can't be installed on a node as it is: one line that says what, where and how to mend it."""


@dataclass(frozen=True)
class Card:
    """A display controller of NVIDIA's: address on the bus, device id, and the driver that has it, if one has."""

    address: str
    device_id: int
    taken_by: str

    @property
    def has_open_modules(self) -> bool:
        """Whether the open kernel modules run it."""
        return self.device_id >= FIRST_TURING

    @property
    def needs_open_modules(self) -> bool:
        """Whether no other kernel modules run it."""
        return self.device_id >= FIRST_BLACKWELL


@dataclass(frozen=True)
class Kernel:
    """An installed kernel, and whether NVIDIA's module lies in its tree."""

    release: str
    has_module: bool


@dataclass(frozen=True)
class Driver:
    """What a node has of NVIDIA's driver.

    + system: fields of os-release
    + cards: on the PCI bus, with or without a driver
    + kernel: the running one
    + kernels: the installed ones, oldest first
    + loaded: version of the module in the kernel, empty without one
    + is_closed: whether that one is proprietary
    + on_disk, licence: of the module that the running kernel would load
    + has_uvm: whether nvidia_uvm is loaded, too: without it, nvidia-smi works and CUDA doesn't
    + smi: what nvidia-smi says, empty without one
    + reboot_required: what the distribution's own note says, empty without one
    + has_secure_boot, is_key_enrolled: whether unsigned modules are refused, and the key of DKMS is known
    + packages: installed ones that have to do with driver or kernel, and their versions
    + holds: packages that apt leaves alone
    + has_run_file: whether NVIDIA's .run installer has been at work
    + stale_initrds: kernels whose initrd is older than the file that switches nouveau off
    + persistenced: what systemd says of nvidia-persistenced: enabled or not, active or not
    """

    system: Mapping[str, str]
    cards: tuple[Card, ...]
    kernel: str
    kernels: tuple[Kernel, ...]
    loaded: str
    is_closed: bool
    on_disk: str
    licence: str
    has_uvm: bool
    smi: str
    reboot_required: str
    has_secure_boot: bool
    is_key_enrolled: bool
    packages: Mapping[str, str]
    holds: frozenset[str]
    has_run_file: bool
    stale_initrds: tuple[str, ...]
    persistenced: tuple[str, ...]

    @property
    def taken(self) -> tuple[Card, ...]:
        """Cards that a driver of the kernel's own has."""
        return tuple(card for card in self.cards if card.taken_by in OTHERS)

    @property
    def newest(self) -> Kernel | None:
        """The kernel that the next boot starts, unless the boot loader is told otherwise."""
        return self.kernels[-1] if self.kernels else None

    @property
    def bare_kernel(self) -> str | None:
        """A newer kernel than the running one that has no module: after a reboot there would be no driver."""
        if self.newest and self.newest.release != self.kernel and not self.newest.has_module:
            return self.newest.release
        return None

    @property
    def waits_for_newest(self) -> bool:
        """Whether the module is there for the newest kernel, and not for the running one."""
        newer = self.newest and self.newest.release != self.kernel and self.newest.has_module
        return bool(newer and not self.loaded and not self.on_disk)

    @property
    def is_outdated(self) -> bool:
        """Whether the kernel runs another module than the one on disk."""
        return bool(self.loaded and self.on_disk and self.loaded != self.on_disk)

    @property
    def is_closed_for_now(self) -> bool:
        """Whether the closed module is loaded, and the open one on disk."""
        return bool(self.loaded and self.is_closed and self.licence == OPEN_LICENCE)

    @property
    def needs_reboot(self) -> bool:
        """Whether a reboot would mend something that nothing else does."""
        return bool(self.taken or self.is_outdated or self.is_closed_for_now or self.waits_for_newest)

    @property
    def may_reboot(self) -> bool:
        """Whether there is a driver after a reboot."""
        return self.newest.has_module if self.newest else bool(self.on_disk)


def parse(texts: Mapping[str, str]) -> Driver:
    """What the fact `roles.nvidia_driver.facts.Driver` reads, by its keys; what is missing on the node is empty."""
    packages = (line.split() for line in texts["packages"].splitlines() if line.startswith("installed "))
    return Driver(
        system=os_release.fields(texts["system"]),
        cards=tuple(_cards(texts["pci"])),
        kernel=texts["kernel"].strip(),
        kernels=tuple(Kernel(*_fields(line)) for line in texts["kernels"].splitlines()),
        loaded=texts["loaded"].strip(),
        is_closed="P" in texts["taint"],
        on_disk=texts["on_disk"].strip(),
        licence=texts["licence"].strip(),
        has_uvm=bool(texts["uvm"].strip()),
        smi=texts["smi"].strip(),
        reboot_required=" ".join(dict.fromkeys(texts["reboot_required"].split())),
        has_secure_boot=bool(re.search(r"SecureBoot enabled|^\s*1\s*$", texts["secure_boot"])),
        is_key_enrolled="is already enrolled" in texts["key"],
        packages={package: version for _, package, version in packages},
        holds=frozenset(texts["holds"].split()),
        has_run_file=bool(texts["run_file"].strip()),
        stale_initrds=tuple(texts["stale_initrds"].split()),
        persistenced=tuple(texts["persistenced"].split()),
    )


def _cards(text: str) -> Iterator[Card]:
    """Cards from lines of `ADDRESS 0xDEVICE DRIVER`, the last of which may be missing."""
    for address, device, taken_by in re.findall(r"^(\S+) (0x[0-9a-f]+) ?(\S*)$", text, re.MULTILINE):
        yield Card(address, int(device, 16), taken_by)


def _fields(line: str) -> tuple[str, bool]:
    release, _, module = line.partition(" ")
    return release, bool(module.strip())


def findings(driver: Driver) -> list[Finding]:
    """What is wrong with the driver, the worst first; one that is `ok` where nothing is.

    Sentences only: what of it a reboot would mend is in `driver.needs_reboot`.
    """
    if not driver.cards:
        return [_finding("ok", "no NVIDIA card on the PCI bus")]
    errors = [*_loading(driver), *_closed(driver), *_versions(driver)]
    warnings = list(_notices(driver))
    if errors or any(each.level == "error" for each in warnings):
        return sorted([*errors, *warnings], key=lambda each: each.level != "error")
    kind = "closed" if driver.is_closed else "open"
    return [*warnings, _finding("ok", f"driver {driver.loaded} with {kind} kernel modules, {_count(driver)}")]


def _finding(level: Level, says: str, fix: str | None = None) -> Finding:
    return Finding("driver", level, says, fix)


def _count(driver: Driver) -> str:
    number = len(driver.cards)
    return f"{number} card" if number == 1 else f"{number} cards"


def _loading(driver: Driver) -> Iterator[Finding]:
    """Nothing loaded, or something else."""
    if driver.taken:
        cards = ", ".join(f"{card.taken_by} has the card {card.address}" for card in driver.taken)
        fix = f"`{DEPLOY}` with nvidia.driver: 'install' blacklists it, then `systemctl reboot`"
        yield _finding("error", f"{cards}, and gives it back at a reboot only", fix)
    elif driver.waits_for_newest and driver.newest:
        says = f"the driver is there for the kernel {driver.newest.release}, and {driver.kernel} is running"
        yield _finding("error", says, "`systemctl reboot`")
    elif not driver.loaded and not driver.on_disk and any(MODULES.match(name) for name in driver.packages):
        says = f"the driver is installed, and the kernel {driver.kernel} has no module of it"
        yield _finding("error", says, f"`{module_package(driver, driver.kernel)}`")
    elif not driver.loaded and not driver.on_disk:
        says = f"{_count(driver)} on the PCI bus, and no driver for the kernel {driver.kernel}"
        yield _finding("error", says, f"`{DEPLOY}`, with nvidia.driver: 'install'")
    elif not driver.loaded:
        fix = "`modprobe nvidia`, and `journalctl -k -g 'NVRM|nvidia'` says why not"
        yield _finding("error", f"the driver {driver.on_disk} is installed and not loaded", fix)
    elif not driver.has_uvm:
        says = "nvidia_uvm is not loaded: nvidia-smi works, and CUDA does not"
        yield _finding("error", says, "`modprobe nvidia_uvm`")


def _closed(driver: Driver) -> Iterator[Finding]:
    """Closed modules where only open ones work."""
    cards = [card.address for card in driver.cards if card.needs_open_modules]
    if not cards:
        return
    if driver.is_closed_for_now:
        yield _finding("error", "the closed module is loaded, and the open one installed", "`systemctl reboot`")
    elif (driver.loaded and driver.is_closed) or (driver.on_disk and driver.licence != OPEN_LICENCE):
        says = f"the kernel modules are the closed ones, which don't know the card {', '.join(cards)}"
        yield _finding("error", says, f"`{DEPLOY}`, with nvidia.driver: 'install', has the open ones")


def _versions(driver: Driver) -> Iterator[Finding]:
    """Module, file and library that are not of one version, or a library that fails."""
    if driver.is_outdated:
        says = f"driver/library version mismatch: {driver.loaded} is loaded, and {driver.on_disk} installed"
        yield _finding("error", f"{says}; what runs goes on, nothing new starts", "`systemctl reboot`")
    elif "version mismatch" in driver.smi:
        says = f"driver/library version mismatch: the module is {driver.loaded}, and the libraries are of another"
        fix = f"`apt-get install --fix-broken`, then `{DEPLOY}`: module and libraries have to be of one version"
        yield _finding("error", says, fix)
    elif driver.loaded and not driver.taken and not re.search(rf"^{VERSION}\s*$", driver.smi, re.MULTILINE):
        said = driver.smi.splitlines()[0] if driver.smi else "there is none"
        yield _finding("error", f"nvidia-smi shows no card: {said}", "`journalctl -k -g NVRM` says why")


def _notices(driver: Driver) -> Iterator[Finding]:
    """What is not wrong yet."""
    if driver.bare_kernel:
        level: Level = "error" if driver.needs_reboot else "warning"
        says = f"the kernel {driver.bare_kernel} is installed and has no NVIDIA module: don't reboot into it"
        yield _finding(level, says, f"`{module_package(driver, driver.bare_kernel)}`")
    if driver.loaded and driver.persistenced and "active" not in driver.persistenced:
        says = "nvidia-persistenced is not running: each start of a service begins with seconds of waking the cards"
        yield _finding("warning", says, "`systemctl enable --now nvidia-persistenced`")
    if driver.reboot_required and not driver.needs_reboot:
        says = f"/run/reboot-required: {driver.reboot_required}; the driver needs no reboot"
        yield Finding("reboot", "warning", says, "`systemctl reboot`, when it suits you")


def module_package(driver: Driver, kernel: str) -> str:
    """The command that brings a kernel its module."""
    for package in driver.packages:
        if match := re.match(r"linux-modules-nvidia-(\d+)((?:-server)?(?:-open)?)-", package):
            return f"apt-get install linux-modules-nvidia-{match[1]}{match[2]}-{kernel}"
    return f"apt-get install linux-headers-{kernel} && dkms autoinstall -k {kernel}"
