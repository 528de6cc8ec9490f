"""Static huge pages for models: how many, on which NUMA node, and how the kernel is told.

The engine's `-thp` takes one mapping of MAP_HUGETLB for each file of a model, in the kernel's default huge page size
(ik_llama.cpp, src/llama-mmap.cpp). Source of the words: the kernel's admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moehost.topology import Topology

MIB = 1 << 20
GIB_MIB = 1024
PAGE_MIB = {"2M": 2, "1G": 1024}


class PoolError(ValueError):
    """Why there can't be such pools: one line that says what, where and how to mend it."""


@dataclass(frozen=True)
class Pools:
    """Static huge pages of one size.

    + size: as the kernel writes it: `2M`, `1G`
    + pages: on each NUMA node
    """

    size: str
    pages: Mapping[int, int]

    @property
    def total_mib(self) -> int:
        """Memory that nothing else can use then."""
        return sum(self.pages.values()) * PAGE_MIB[self.size]

    @property
    def words(self) -> tuple[str, ...]:
        """What the kernel's command line says, in this order: a size comes before its number."""
        each = [f"{node}:{pages}" for node, pages in sorted(self.pages.items())]
        number = ",".join(each) if len(each) > 1 else str(sum(self.pages.values()))
        size = (f"hugepagesz={self.size}",) if self.size != "2M" else ()
        return (f"default_hugepagesz={self.size}", *size, f"hugepages={number}")


def pages(files_bytes: Iterable[int], size: str) -> int:
    """How many pages files of these sizes take: each file is a mapping of its own."""
    return sum(-(-each // (PAGE_MIB[size] * MIB)) for each in files_bytes)


def pools(files_bytes: Iterable[int], size: str, host: Topology) -> Pools:
    """The pools for models with files of these sizes, spread evenly over the nodes that have memory.

    Raises PoolError where the processor has no such pages, or too little memory would be left.
    """
    if size == "1G" and not host.has_1g_pages:
        raise PoolError(
            f"tuning.huge_page_size: {host.cpu.model} has no pages of 1 GiB (no flag pdpe1gb); write '2M'"
        )
    page_mib, total = PAGE_MIB[size], pages(files_bytes, size)
    reserve_mib = reserved_mib(host.total_mib)
    if total * page_mib + reserve_mib > host.total_mib:
        raise PoolError(
            f"tuning.huge_pages: the services' models need {total * page_mib / GIB_MIB:.1f} GiB of huge pages, and "
            f"{reserve_mib / GIB_MIB:.1f} GiB must be left of {host.total_mib / GIB_MIB:.1f} GiB; write 'thp', or "
            "take smaller models"
        )
    nodes = sorted(host.memory_mib)
    each, more = divmod(total, len(nodes))
    return Pools(size, {node: each + (index < more) for index, node in enumerate(nodes)})


def reserved_mib(total_mib: int) -> int:
    """What must be left beside the pools: a quarter of the memory, between 1 and 48 GiB."""
    return max(GIB_MIB, min(48 * GIB_MIB, total_mib // 4))


def of_words(words: Iterable[str], nodes: Iterable[int]) -> Pools | None:
    """The pools that a command line asks for, on these nodes with memory; None where it asks for none."""
    size, found = "2M", None
    for word in words:
        key, _, value = word.partition("=")
        if key in ("default_hugepagesz", "hugepagesz") and value in PAGE_MIB:
            size = value
        elif key == "hugepages" and (per_node := re.findall(r"(\d+):(\d+)", value)):
            found = Pools(size, {int(node): int(pages) for node, pages in per_node})
        elif key == "hugepages" and value.isdecimal():
            there = sorted(nodes)
            each, more = divmod(int(value), len(there))
            found = Pools(size, {node: each + (index < more) for index, node in enumerate(there)})
    return found


def lacking(wanted: Pools, host: Topology) -> list[str]:
    """What the kernel could not set aside, a line for each node."""
    page_mib = PAGE_MIB[wanted.size]
    there = {each.node: each.pages for each in host.pools if each.page_mib == page_mib}
    return [
        f"NUMA node {node} has {there.get(node, 0)} of {pages} huge pages of {wanted.size}: "
        f"{(pages - there.get(node, 0)) * page_mib / GIB_MIB:.1f} GiB lack"
        for node, pages in sorted(wanted.pages.items())
        if there.get(node, 0) < pages
    ]
