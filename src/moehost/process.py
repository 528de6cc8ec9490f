"""A server's process as the kernel has it: on which pages and NUMA nodes its memory lies, what it may do.

Read after a start, when the weights are in memory: what was asked for is compared with what came of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost.memory_policy import LEAST_SHARE
from moehost.plan import Plan

KIB = 1024
# Bit of CAP_SYS_NICE in the kernel's capability sets (linux/capability.h).
SYS_NICE = 1 << 23


@dataclass(frozen=True)
class Process:
    """A running server.

    + resident_mib, huge_mib: memory in use, and what of it lies on huge pages, static ones included
    + node_mib: memory on each NUMA node, in their order
    + interleaved_mib: what of it was allocated under the policy `interleave`
    + has_sys_nice: whether the capability is one of the machine's, not only of a namespace of its own
    """

    resident_mib: int
    huge_mib: int
    node_mib: tuple[int, ...]
    interleaved_mib: int
    nice: int
    has_sys_nice: bool

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Process | None:
        """From the texts of the fact `ServerProcess`; None where there is no process to read."""
        kib = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", texts["smaps"], re.MULTILINE)}
        if "Rss" not in kib:
            return None
        static = kib.get("Shared_Hugetlb", 0) + kib.get("Private_Hugetlb", 0)
        nodes: dict[int, int] = {}
        interleaved_kib = 0
        for line in texts["numa_maps"].splitlines():
            page_kib = re.search(r"kernelpagesize_kB=(\d+)", line)
            for node, pages in re.findall(r" N(\d+)=(\d+)", line):
                here_kib = int(pages) * int(page_kib[1] if page_kib else 4)
                nodes[int(node)] = nodes.get(int(node), 0) + here_kib
                interleaved_kib += here_kib if " interleave" in line else 0
        capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", texts["status"], re.MULTILINE)
        namespaces = texts["namespaces"].split()
        nice = re.search(r"-?\d+", texts["nice"])
        return cls(
            # Static pages are no part of Rss.
            resident_mib=(kib["Rss"] + static) // KIB,
            huge_mib=(kib.get("AnonHugePages", 0) + static) // KIB,
            node_mib=tuple(nodes[node] // KIB for node in sorted(nodes)),
            interleaved_mib=interleaved_kib // KIB,
            nice=int(nice[0]) if nice else 0,
            has_sys_nice=bool(capabilities and int(capabilities[1], 16) & SYS_NICE) and len(set(namespaces)) == 1,
        )

    def __str__(self) -> str:
        said = f"{self.resident_mib} MiB in memory, {self.huge_mib} MiB of it on huge pages"
        if len(self.node_mib) > 1:
            said += f", on the NUMA nodes {' + '.join(map(str, self.node_mib))} MiB"
        return f"{said}; nice {self.nice}, {'with' if self.has_sys_nice else 'without'} SYS_NICE"

    def problem(self, plan: Plan) -> str | None:
        """Why the server must not stay as it is."""
        if plan.placement.is_interleaved and not self.interleaved_mib:
            return "numa: no memory of the server is interleaved, although its unit says so; see tuning.md"
        return None

    def doubts(self, plan: Plan, wants_sys_nice: bool) -> Iterator[str]:
        """What was wished for and did not come, a line each; where huge pages are a must the unit fails."""
        weights_mib = plan.placement.host_weights_mib
        if plan.placement.pages and self.huge_mib < LEAST_SHARE * weights_mib:
            yield (
                f"huge_pages: {self.huge_mib} MiB of {weights_mib} MiB of weights lie on huge pages; memory is in "
                "small pieces, or transparent huge pages are off; see tuning.md"
            )
        if wants_sys_nice and not self.has_sys_nice:
            yield "sys_nice: the server has not got the capability, or in a namespace of its own only"
