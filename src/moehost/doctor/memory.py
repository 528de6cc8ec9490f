"""Memory as the experts on the CPU feel it: channels, NUMA nodes, pages, swap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost.finding import Finding
from moehost.hardware import Cpu, HardwareError, node_from_facts
from moehost.settings import Node

GIB_KIB = 1 << 20
# How boards name a channel: `P0 CHANNEL A`, `P0_Node0_Channel3_Dimm0`, `CPU1_DIMM_A1`, `P1-DIMMC1`, `DIMM_P0_B0`.
CHANNEL = re.compile(r".*?(CHANNEL ?([A-Z]|\d+)|DIMM[ _]?(P\d_)?[A-Z](?=\d|$))", re.IGNORECASE)
MIB = {"MB": 1, "GB": 1024, "TB": 1 << 20}


@dataclass(frozen=True)
class Module:
    """A module of memory: where it is, what it holds, what it could run at and what it does, MT/s (0: not said)."""

    channel: str | None
    size_mib: int
    rated_mt_s: int
    mt_s: int


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


def numa(cpu: Cpu) -> Finding:
    """Whether each socket is one NUMA node."""
    nodes = cpu.numa_nodes
    if nodes <= cpu.sockets:
        return Finding("numa", "ok", f"{cpu.model}: {nodes} NUMA node(s) for {cpu.sockets} socket(s)")
    if nodes == cpu.l3_domains:
        says = f"each L3 cache is a NUMA node ({nodes}), and the engine knows of 8 at most"
        return Finding("numa", "warning", says, "in the BIOS: ACPI SRAT L3 Cache as NUMA Domain: Disabled")
    says = f"{nodes} NUMA nodes for {cpu.sockets} socket(s): a thread reads most experts from afar"
    return Finding("numa", "warning", says, "in the BIOS: NUMA nodes per socket: NPS1")


def modules(text: str) -> list[Module]:
    """The modules that are there, by `dmidecode --type memory`; none without root or dmidecode."""
    found = []
    for block in text.split("Memory Device\n")[1:]:
        fields = dict(re.findall(r"^\s*([\w ]+): *(.*?) *$", block, re.MULTILINE))
        size = re.fullmatch(r"(\d+) ([MGT]B)", fields.get("Size", ""))
        if not size:
            continue
        named = CHANNEL.match(fields.get("Bank Locator", "")) or CHANNEL.match(fields.get("Locator", ""))
        channel = named[0] if named else None
        speed = fields.get("Configured Memory Speed") or fields.get("Configured Clock Speed", "")
        found.append(Module(channel, int(size[1]) * MIB[size[2]], _number(fields.get("Speed", "")), _number(speed)))
    return found


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def channels(cpu: Cpu, there: list[Module]) -> Iterator[Finding]:
    """Whether every channel of the processor has a module, all alike, at full speed."""
    if not there or not cpu.socket_memory:
        return
    wanted, cpu_mt_s = cpu.socket_memory[0] * cpu.sockets, cpu.socket_memory[1]
    named = {each.channel for each in there}
    filled = len(there) if None in named else len(named)
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
    if taken_gib and not any("-thp" in service.server_args for service in node.services):
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
