"""How a host should be tuned: values of the kernel's, each for a reason, and words of its command line.

docs/tuning.md has the evidence for each. What a host lacks is left out: a virtual machine has no frequencies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost import settings_tuning
from moehost.finding import Finding
from moehost.huge_page_pools import Pools
from moehost.topology import CPUFREQ, RESUME_LATENCY, THP, Topology, numa

MIB = 1 << 20
READ_AHEAD_KIB = 4096
SWAPPINESS = 10
MOST_FREE_KIB = 1 << 20
# The same limit in two units: the kernel sets the other one to 0, and takes no 0 for one.
RATIOS = {
    "/proc/sys/vm/dirty_bytes": "/proc/sys/vm/dirty_ratio",
    "/proc/sys/vm/dirty_background_bytes": "/proc/sys/vm/dirty_background_ratio",
}


@dataclass(frozen=True)
class Knob:
    """A value of the kernel's.

    + area: the setting below `tuning` that it belongs to
    + path: its file below /proc/sys or /sys
    + value: what it should be
    + why: the reason, for the file on the node
    + at_least: whether more will do as well
    """

    area: str
    path: str
    value: str
    why: str
    at_least: bool = False

    @property
    def sysctl(self) -> str:
        """Its name in sysctl.d, empty for one in sysfs."""
        return self.path.removeprefix("/proc/sys/").replace("/", ".") if self.path.startswith("/proc/sys/") else ""

    @property
    def disk(self) -> str:
        """The disk that it belongs to, if it does."""
        found = re.match("/sys/block/([^/]+)/", self.path)
        return found[1] if found else ""

    @property
    def attribute(self) -> str:
        """For a disk: its name in udev's rules."""
        return self.path.removeprefix(f"/sys/block/{self.disk}/")

    @property
    def pattern(self) -> str:
        """Its path in tmpfiles.d, the same for all cores."""
        return re.sub(r"/(policy|cpu)\d+/", r"/\1[0-9]*/", self.path)

    def is_in_effect(self, host: Topology) -> bool:
        """Whether the kernel has it so."""
        now = host.values.get(self.path, "")
        if self.at_least and now.isdecimal():
            return int(now) >= int(self.value)
        return now == self.value


@dataclass(frozen=True)
class Tuning:
    """What a host should be set to; `warnings` says what stands in the way, and is no fault of the settings."""

    knobs: tuple[Knob, ...]
    words: tuple[str, ...]
    warnings: tuple[Finding, ...]

    def drifted(self, host: Topology) -> list[Knob]:
        """What is not as it should be."""
        return [each for each in self.knobs if not each.is_in_effect(host)]


def tuning(
    wish: settings_tuning.Tuning, host: Topology, before: Mapping[str, str], pools: Pools | None = None
) -> Tuning:
    """How this host should be tuned.

    + before: values by path from before the first tuning
    + pools: static huge pages, for `huge_pages: static`
    """
    knobs = [
        *(_numa(host) if wish.numa == "auto" and len(host.memory_mib) > 1 else ()),
        *(_huge_pages() if wish.huge_pages in ("auto", "thp") else ()),
        *(_cpu(wish, host) if wish.cpu == "auto" else ()),
        *(_memory(host, before) if wish.memory == "auto" else ()),
        *(_io(host, before) if wish.io == "auto" else ()),
    ]
    there = tuple(each for each in knobs if each.path in host.values)
    words = (*(pools.words if pools else ()), *wish.kernel_parameters)
    return Tuning(there, words, tuple(_warnings(wish, host)))


def _numa(host: Topology) -> Iterator[Knob]:
    balancing = "Moving pages between nodes costs faults, and pinned weights can't be moved."
    yield Knob("numa", "/proc/sys/kernel/numa_balancing", "0", balancing)
    reclaim = "Memory of another node is better than dropping the page cache of this one."
    yield Knob("numa", "/proc/sys/vm/zone_reclaim_mode", "0", reclaim)


def _huge_pages() -> Iterator[Knob]:
    enabled = "Programs that ask for transparent huge pages get them, and no others."
    yield Knob("huge_pages", f"{THP}/enabled", "madvise", enabled)
    defrag = "Who asks waits until memory has been made contiguous; nobody else does."
    yield Knob("huge_pages", f"{THP}/defrag", "madvise", defrag)


def _cpu(wish: settings_tuning.Tuning, host: Topology) -> Iterator[Knob]:
    governor = "Decode is short bursts on all cores: each would wait for the clock to rise."
    for path in host.values:
        choices = host.values.get(path.replace("scaling_governor", "scaling_available_governors"), "").split()
        if path.startswith(CPUFREQ) and path.endswith("/scaling_governor") and "performance" in choices:
            yield Knob("cpu", path, "performance", governor)
    if wish.boost is not None:
        yield Knob("cpu", f"{CPUFREQ}/boost", str(int(wish.boost)), "tuning.boost of the inventory.")
    if wish.cpu_latency_us is not None:
        # 0 would mean that any latency will do.
        latency = str(wish.cpu_latency_us) if wish.cpu_latency_us else "n/a"
        for path in filter(RESUME_LATENCY.fullmatch, host.values):
            yield Knob("cpu", path, latency, "tuning.cpu_latency_us of the inventory.")


def _memory(host: Topology, before: Mapping[str, str]) -> Iterator[Knob]:
    # In steps: what a kernel calls its total differs a little from boot to boot.
    most_mib = min(2048, max(64, host.total_mib // 8 // 64 * 64))
    soon = "Writing begins early: the default of 10 % would let tens of GB of a download gather."
    yield Knob("memory", "/proc/sys/vm/dirty_background_bytes", str(most_mib // 4 * MIB), soon)
    wait = "No more than this is lost with the power, and a sync is over in seconds."
    yield Knob("memory", "/proc/sys/vm/dirty_bytes", str(most_mib * MIB), wait)
    swap = "The page cache of a model's files goes before the memory of programs does."
    yield Knob("memory", "/proc/sys/vm/swappiness", str(SWAPPINESS), swap)
    free = "Room for network and disk while a load fills the page cache: a thousandth of the memory."
    least_kib = min(host.total_mib // 1024 * 1024, MOST_FREE_KIB)
    yield from _raised("memory", "/proc/sys/vm/min_free_kbytes", least_kib, free, host, before)


def _io(host: Topology, before: Mapping[str, str]) -> Iterator[Knob]:
    if not host.disk or not host.disk.disk or host.disk.layers:
        return
    scheduler = "mq-deadline" if host.disk.is_rotational else "none"
    ahead = "Models are read from beginning to end."
    yield from _raised("io", f"{host.disk.queue}/read_ahead_kb", READ_AHEAD_KIB, ahead, host, before)
    order = "A disk that turns gains by an order of requests, others lose time by it."
    yield Knob("io", f"{host.disk.queue}/scheduler", scheduler, order)


def _raised(area: str, path: str, value: int, why: str, host: Topology, before: Mapping[str, str]) -> Iterator[Knob]:
    """A value that is never below the one from before."""
    kernels = before.get(path) or host.values.get(path, "")
    if kernels.isdecimal() and value > int(kernels):
        yield Knob(area, path, str(value), why, at_least=True)


def _warnings(wish: settings_tuning.Tuning, host: Topology) -> Iterator[Finding]:
    """What tuning can't change, or what was asked for and can't be had."""
    if (firmware := numa(host.cpu)).level != "ok":
        yield firmware
    if wish.cpu == "auto" and wish.boost is not None and f"{CPUFREQ}/boost" not in host.values:
        says = "tuning.boost: this kernel's frequency driver has no switch for it"
        yield Finding("cpu", "warning", says, "in the BIOS: Core Performance Boost; and take the setting out")
    disk = host.disk
    if wish.io != "auto" or not disk:
        return
    if disk.layers:
        says = f"{disk.mount} lies on {' on '.join(disk.layers)}: read-ahead and scheduler are left alone"
        yield Finding("io", "warning", says, "tuning.io: 'off' says that this is meant")
    if "sync" in disk.options:
        says = f"{disk.mount} is mounted with sync: each write of a download waits for the disk"
        yield Finding("io", "warning", says, f"take sync out of the options of {disk.mount} in /etc/fstab")
    if disk.is_rotational and not {"noatime", "relatime", "ro"} & set(disk.options):
        says = f"{disk.mount} notes each access, on a disk that turns"
        yield Finding("io", "warning", says, f"add noatime to the options of {disk.mount} in /etc/fstab")
