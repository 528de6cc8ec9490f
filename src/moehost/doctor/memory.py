"""Memory as the experts on the CPU feel it: channels, NUMA nodes, pages, swap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moehost.finding import DEPLOY, Finding
from moehost.hardware import Cpu, HardwareError, node_from_facts
from moehost.memory_modules import Module, filled_channels, modules
from moehost.settings import Node
from moehost.topology import numa

GIB_KIB = 1 << 20


def findings(machine: Mapping[str, str], texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """What there is to say of memory, by the texts of the facts `Machine` and `Condition`."""
    try:
        found = node_from_facts(machine["lscpu"], machine["meminfo"], "", machine["has_memory"], machine["l3_ids"])
    except HardwareError as error:
        yield Finding("memory", "warning", str(error), "LC_ALL=C lscpu -J; cat /proc/meminfo")
        return
    yield numa(found.cpu)
    yield from channels(found.cpu, modules(texts["modules"]))
    yield from huge_pages(machine["meminfo"], texts["huge_pages"], node)
    yield swap(texts["swaps"])


def channels(cpu: Cpu, there: list[Module]) -> Iterator[Finding]:
    """Whether every channel of the processor has a module, all alike, at full speed."""
    if not there or not cpu.socket_memory:
        return
    wanted, cpu_mt_s = cpu.socket_memory[0] * cpu.sockets, cpu.socket_memory[1]
    filled = filled_channels(there)
    rated_mt_s, mt_s = min(each.rated_mt_s for each in there), min(each.mt_s for each in there)
    if filled < wanted:
        says = f"{min(filled, wanted)} of {wanted} memory channels have a module: decode is slower by as much"
        yield Finding("memory", "warning", says, "put a module of the same kind into every channel (board's manual)")
    if len({each.size_mib for each in there}) > 1:
        sizes = ", ".join(f"{size // 1024} GiB" for size in sorted({each.size_mib for each in there}))
        says = f"the memory modules differ ({sizes}): part of the memory is not spread over all channels"
        yield Finding("memory", "warning", says, "use modules of one size")
    if 0 < mt_s < min(rated_mt_s, cpu_mt_s):
        says = f"memory runs at {mt_s} MT/s; the modules can {rated_mt_s}, the processor {cpu_mt_s}"
        fix = "in the BIOS: memory speed Auto or the modules' own; two modules on a channel run slower than one"
        yield Finding("memory", "warning", says, fix)
    elif filled >= wanted:
        total_gib = sum(each.size_mib for each in there) // 1024
        yield Finding("memory", "ok", f"{wanted} channels filled, {total_gib} GiB at {mt_s} MT/s")


def huge_pages(meminfo: str, enabled: str, node: Node) -> Iterator[Finding]:
    """Whether transparent huge pages can be had, and static ones are not in the way."""
    chosen = re.search(r"\[(\w+)\]", enabled)
    if chosen and chosen[1] == "never":
        fix = DEPLOY
        if node.tuning.huge_pages in ("static", "off"):
            fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        yield Finding(
            "huge pages", "warning", "transparent huge pages are off, so the engine can't ask for them", fix
        )
    elif chosen:
        yield Finding("huge pages", "ok", f"transparent huge pages: {chosen[1]}")
    count = re.search(r"^HugePages_Total:\s+(\d+)", meminfo, re.MULTILINE)
    size = re.search(r"^Hugepagesize:\s+(\d+) kB", meminfo, re.MULTILINE)
    taken_gib = int(count[1]) * int(size[1]) / GIB_KIB if count and size else 0
    # Only an engine that was told so takes static ones.
    is_static = node.tuning.huge_pages == "static" and node.services
    if taken_gib and not is_static and not any("-thp" in service.server_args for service in node.services):
        says = f"{taken_gib:.1f} GiB are set aside as static huge pages, which no service here uses"
        fix = "sysctl vm.nr_hugepages=0, and take hugepages= out of sysctl.d and of the kernel's command line"
        yield Finding("huge pages", "warning", says, fix)


def swap(swaps: str) -> Finding:
    """Whether something had to make room."""
    rows = [line.split() for line in swaps.splitlines()[1:]]
    size_kib, used_kib = (sum(int(row[column]) for row in rows if len(row) > 3) for column in (2, 3))
    if used_kib > GIB_KIB:
        says = f"{used_kib / GIB_KIB:.1f} GiB are in swap: something else needs the memory that a model has"
        return Finding("swap", "warning", says, "grep VmSwap /proc/[0-9]*/status | sort -nk 2 | tail -n 5 says what")
    return Finding("swap", "ok", f"{size_kib / GIB_KIB:.1f} GiB swap, hardly used" if size_kib else "no swap")
