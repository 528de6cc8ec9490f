"""What a host is, as far as tuning depends on it; parsed from text that others have read.

Source of the NUMA modes: AMD's tuning guides for EPYC 9004 and 9005 (NPS, ACPI SRAT L3 Cache as NUMA Domain).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moehost import model_disk
from moehost.finding import Finding
from moehost.hardware import Cpu, node_from_facts
from moehost.memory_modules import Module, filled_channels, modules
from moehost.model_disk import ModelDisk

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
THP = "/sys/kernel/mm/transparent_hugepage"
POOL = re.compile(r"/sys/devices/system/node/node(\d+)/hugepages/hugepages-(\d+)kB/nr_hugepages")
RESUME_LATENCY = re.compile(r"/sys/devices/system/cpu/cpu\d+/power/pm_qos_resume_latency_us")


@dataclass(frozen=True)
class Pool:
    """Static huge pages of one size on one NUMA node."""

    node: int
    page_mib: int
    pages: int
    free_pages: int


@dataclass(frozen=True)
class Topology:
    """A host.

    + memory_mib: memory of each NUMA node that has some
    + modules: modules of memory, none without root
    + has_1g_pages: whether the processor has pages of 1 GiB
    + container: the kind of container that the host is, empty for a machine
    + virtual_machine: the kind of virtual machine that it is, empty for none
    + values: what the kernel says, by path below /proc and /sys
    + words: the kernel's command line
    + boot_words: the command line of the next boot, by GRUB's own configuration
    + own_words: what moehost has put on it
    + has_grub: whether the command line is GRUB's and can be added to
    + disk: where the model store lies
    """

    cpu: Cpu
    total_mib: int
    memory_mib: dict[int, int]
    modules: tuple[Module, ...]
    has_1g_pages: bool
    container: str
    virtual_machine: str
    values: dict[str, str]
    words: tuple[str, ...]
    boot_words: tuple[str, ...]
    own_words: tuple[str, ...]
    has_grub: bool
    disk: ModelDisk | None
    cgroup_version: int
    memlock_bytes: int | None
    dma_latency_us: int | None

    @property
    def numa_mode(self) -> str:
        """What the firmware makes NUMA nodes of."""
        return numa_mode(self.cpu)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The static huge pages that there are."""
        found = []
        for path, value in self.values.items():
            if (at := POOL.fullmatch(path)) and value.isdecimal():
                free = self.values.get(path.replace("/nr_", "/free_"), "0")
                found.append(Pool(int(at[1]), int(at[2]) // 1024, int(value), int(free)))
        return tuple(sorted(found, key=lambda each: (each.node, each.page_mib)))

    @property
    def governors(self) -> dict[str, int]:
        """The frequency governors, and how many policies each has."""
        return dict(Counter(value for path, value in self.values.items() if path.endswith("/scaling_governor")))

    def to_json(self, models_dir: str) -> dict[str, Any]:
        """What `moehost facts --json` prints; units are in the keys."""
        get, cpu, disk = self.values.get, self.cpu, self.disk
        boost = get(f"{CPUFREQ}/boost")
        latencies = sorted({value for path, value in self.values.items() if RESUME_LATENCY.fullmatch(path)})
        drivers = sorted({value for path, value in self.values.items() if path.endswith("/scaling_driver")})
        return {
            "cpu": {
                "model": cpu.model,
                "sockets": cpu.sockets,
                "cores": cpu.cores,
                "threads": cpu.threads,
                "smt": cpu.threads > cpu.cores,
                "l3_domains": cpu.l3_domains,
                "numa_mode": self.numa_mode,
                "has_1g_pages": self.has_1g_pages,
            },
            "memory_mib": self.total_mib,
            "numa_nodes": [{"node": node, "memory_mib": mib} for node, mib in self.memory_mib.items()],
            "memory_channels": {
                "filled": filled_channels(list(self.modules)) if self.modules else None,
                "of": cpu.socket_memory[0] * cpu.sockets if cpu.socket_memory else None,
                "speed_mt_s": min((each.mt_s for each in self.modules), default=None),
                "rated_mt_s": min((each.rated_mt_s for each in self.modules), default=None),
            },
            "frequency": {
                "drivers": drivers,
                "governors": self.governors,
                "boost": None if boost is None else boost == "1",
                "resume_latency_us": latencies,
                "cpu_dma_latency_us": self.dma_latency_us,
            },
            "huge_pages": {
                "transparent": get(f"{THP}/enabled"),
                "defrag": get(f"{THP}/defrag"),
                "pools": [
                    {"node": p.node, "page_mib": p.page_mib, "pages": p.pages, "free_pages": p.free_pages}
                    for p in self.pools
                ],
            },
            "sysctl": {
                path.removeprefix("/proc/sys/").replace("/", "."): value
                for path, value in self.values.items()
                if path.startswith("/proc/sys/")
            },
            "kernel_command_line": list(self.words),
            "limits": {"memlock_bytes": self.memlock_bytes},
            "cgroup_version": self.cgroup_version,
            "container": self.container,
            "virtual_machine": self.virtual_machine,
            "models_dir": {
                "path": models_dir,
                "mount": disk.mount,
                "source": disk.source,
                "file_system": disk.file_system,
                "mount_options": list(disk.options),
                "disk": disk.disk or None,
                "layers": list(disk.layers),
                "rotational": disk.is_rotational,
                "read_ahead_kib": int(get(f"{disk.queue}/read_ahead_kb", "0")) or None,
                "scheduler": get(f"{disk.queue}/scheduler"),
            }
            if disk
            else None,
        }


def parse(texts: Mapping[str, str], models_dir: str) -> Topology:
    """What the fact `roles.host_tuning.facts.Topology` reads, by its keys.

    Raises HardwareError where a host does not even say what its processor is.
    """
    found = node_from_facts(texts["lscpu"], texts["meminfo"], "", texts["has_memory"], texts["l3_ids"])
    lines = (line.partition(":") for line in texts["values"].splitlines())
    values = {path: chosen(value) for path, _, value in lines}
    per_node = re.findall(r"^Node (\d+) MemTotal: +(\d+) kB", texts["node_memory"], re.MULTILINE)
    memory_mib = {int(node): int(kib) // 1024 for node, kib in per_node if int(kib)}
    memlock, latency = texts["memlock"].strip(), texts["dma_latency"].strip()
    return Topology(
        cpu=found.cpu,
        total_mib=found.memory_mib,
        memory_mib=memory_mib or {0: found.memory_mib},
        modules=tuple(modules(texts["modules"])),
        has_1g_pages=bool(re.search(r"\bpdpe1gb\b", texts["lscpu"])),
        container=_kind(texts["container"]),
        virtual_machine=_kind(texts["virtual_machine"]),
        values=values,
        words=tuple(texts["words"].split()),
        boot_words=tuple(texts["boot_words"].split()[2:]),
        own_words=_own_words(texts["own_words"]),
        has_grub=bool(texts["has_grub"].strip()),
        disk=model_disk.parse(models_dir, texts["mounts"], texts["blocks"], values),
        cgroup_version=2 if texts["cgroup"].strip() == "cgroup2fs" else 1,
        memlock_bytes=int(memlock) if memlock.isdecimal() else None,
        dma_latency_us=int(latency) if latency.isdecimal() else None,
    )


def chosen(text: str) -> str:
    """A value of the kernel's; of several that could be, the one in brackets."""
    marked = re.search(r"\[(\S+)\]", text)
    return marked[1] if marked else text.strip()


def _kind(text: str) -> str:
    return "" if text.strip() == "none" else text.strip()


def _own_words(text: str) -> tuple[str, ...]:
    """The words that moehost's file for GRUB adds."""
    line = re.search(r'^GRUB_CMDLINE_LINUX_DEFAULT="\$GRUB_CMDLINE_LINUX_DEFAULT (.*)"$', text, re.MULTILINE)
    return tuple(line[1].split()) if line else ()


def numa_mode(cpu: Cpu) -> str:
    """`NPS1`, `NPS2`, `NPS4`, `NPS0` for sockets in one node, or `L3` where each cache is a node."""
    if cpu.numa_nodes > cpu.sockets and cpu.numa_nodes == cpu.l3_domains:
        return "L3"
    return f"NPS{cpu.numa_nodes // cpu.sockets}"


def numa(cpu: Cpu) -> Finding:
    """Whether each socket is one NUMA node."""
    nodes = cpu.numa_nodes
    if nodes <= cpu.sockets:
        return Finding("numa", "ok", f"{cpu.model}: {nodes} NUMA node(s) for {cpu.sockets} socket(s)")
    if numa_mode(cpu) == "L3":
        says = f"each L3 cache is a NUMA node ({nodes}), and the engine knows of 8 at most"
        return Finding("numa", "warning", says, "in the BIOS: ACPI SRAT L3 Cache as NUMA Domain: Disabled")
    says = f"{nodes} NUMA nodes for {cpu.sockets} socket(s): a thread reads most experts from afar"
    return Finding("numa", "warning", says, "in the BIOS: NUMA nodes per socket: NPS1")
