"""Machines for tests: described, not owned."""

from __future__ import annotations

from dataclasses import replace

from moehost.hardware import Cpu, Gpu, Node


def card(vram_mib: int = 97887, bandwidth_gb_s: float = 1792.0, pcie_gb_s: float = 52.0) -> Gpu:
    return Gpu("NVIDIA RTX PRO 6000 Blackwell", vram_mib, "12.0", bandwidth_gb_s, pcie_gb_s)


def epyc_9175f(gpus: int = 1, memory_mib: int = 773000) -> Node:
    """The machine of the published runs, with this many of its cards."""
    return with_cards(*[card()] * gpus, memory_mib=memory_mib)


def with_numa_nodes(nodes: int, gpus: int = 0) -> Node:
    """The same machine, divided in its BIOS."""
    machine = epyc_9175f(gpus)
    return replace(machine, cpu=replace(machine.cpu, numa_nodes=nodes))


def with_cards(*gpus: Gpu, memory_mib: int = 773000, cores: int = 16) -> Node:
    cpu = Cpu("AMD EPYC 9175F 16-Core Processor", 1, cores, 2 * cores, 1, cores)
    return Node(cpu, memory_mib, 614.4, gpus)
