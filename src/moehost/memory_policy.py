"""How a server's memory is spread over NUMA nodes and on which pages it lies: flags, environment, unit keys, proof.

NUMA: `NUMAPolicy=interleave` of a unit is what `numactl --interleave=all` does (systemd.exec(5)); the engine's own
`--numa` does nothing on one node, and counts 8 nodes at most (`GGML_NUMA_MAX_NODES` of both engines).
Huge pages: with cards ik_llama.cpp puts the experts of the host into pinned memory, which asks for transparent ones
when GGML_CUDA_HOST_MALLOC_THP is set and can't be static; what malloc hands out asks for them under glibc's tunable
(2.35 and later); `-thp` is one MAP_HUGETLB mapping for each file, and only without `--no-mmap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pages = Literal["thp", "static"]
NumaWish = Literal["auto", "off", "interleave", "distribute", "isolate", "numactl"]
PagesWish = Literal["auto", "thp", "static", "off"]

ENGINE_NUMA_NODES = 8
# Pages of 2 MiB begin at multiples of that, so both ends of each buffer stay on small ones; half is a clear miss.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Spread:
    """What is done about several NUMA nodes: the unit's policy, and the value of the engine's `--numa`."""

    is_interleaved: bool = False
    flag: str | None = None


def spread(wish: NumaWish, nodes: int) -> Spread:
    """What a wish means on a machine with so many NUMA nodes; ValueError where the engine can't fulfil it."""
    if nodes <= 1 or wish == "off":
        return Spread()
    if wish in ("auto", "interleave"):
        return Spread(is_interleaved=True)
    if nodes > ENGINE_NUMA_NODES:
        raise ValueError(
            f"numa: {wish!r} with {nodes} NUMA nodes, of which the engine sees {ENGINE_NUMA_NODES} and leaves the "
            "cores of the others idle; write 'auto', or make them fewer in the BIOS (NPS1, no L3 as NUMA)"
        )
    return Spread(is_interleaved=wish != "isolate", flag=wish)


def pages(wish: PagesWish, dialect: str) -> Pages | None:
    """Which huge pages an engine is asked to use; ValueError where it can't."""
    if wish == "static" and dialect != "ik":
        raise ValueError(
            "huge_pages: 'static' needs ik_llama.cpp, this engine has no flag for them; write 'thp', or build ik"
        )
    return "thp" if wish == "auto" else None if wish == "off" else wish


def environment(chosen: Pages | None, dialect: str, gpus: int) -> dict[str, str]:
    """What the engine finds its pages by."""
    if chosen == "thp":
        pinned = {"GGML_CUDA_HOST_MALLOC_THP": "1"} if gpus and dialect == "ik" else {}
        return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **pinned}
    # Else the experts of the host are pinned, and what is pinned is not mapped.
    return {"GGML_CUDA_NO_PINNED": "1"} if chosen == "static" and gpus else {}


def warnings(numa: NumaWish, nodes: int, chosen: Pages | None, gpus: int) -> list[str]:
    """What an owner should know of these choices, a line each."""
    said = []
    if nodes <= 1 and numa not in ("auto", "off"):
        said.append(f"numa: the machine has one NUMA node, so {numa!r} has nothing to do and is left out")
    if chosen == "static" and gpus:
        said.append("huge_pages: 'static' keeps experts out of pinned memory, so prompts get slower; 'thp' does not")
    return said
