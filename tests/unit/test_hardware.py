"""Descriptions of machines: the JSON contract, and what lscpu, sysfs, nvidia-smi and the kernel print."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from moehost.hardware import Gpu, HardwareError, Node, node_from_facts

NODE: dict[str, Any] = {
    "cpu": {
        "model": "AMD EPYC 9175F 16-Core Processor",
        "sockets": 1,
        "cores": 16,
        "threads": 32,
        "numa_nodes": 1,
        "l3_domains": 16,
    },
    "memory_mib": 773000,
    "memory_bandwidth_gb_s": 614.4,
    "gpus": [
        {
            "name": "NVIDIA RTX PRO 6000 Blackwell",
            "vram_mib": 97887,
            "compute_capability": "12.0",
            "bandwidth_gb_s": 1792,
            "pcie_gb_s": 52,
        }
    ],
}

FIELDS = {
    "CPU(s):": "32",
    "Model name:": "AMD EPYC 9175F 16-Core Processor",
    "Thread(s) per core:": "2",
    "Core(s) per socket:": "16",
    "Socket(s):": "1",
    "L3 cache:": "512 MiB (16 instances)",
    "NUMA node(s):": "1",
}
LSCPU_TEXT = "\n".join(f"{key:<24}{value}" for key, value in FIELDS.items())
LSCPU_FLAT = json.dumps({"lscpu": [{"field": key, "data": value} for key, value in FIELDS.items()]})
# util-linux 2.38 and later nest the fields of a processor below its vendor, whose own data may be null.
LSCPU_NESTED = json.dumps(
    {"lscpu": [{"field": "Caches:", "data": None, "children": json.loads(LSCPU_FLAT)["lscpu"]}]}
)
MEMINFO = "MemTotal:       791552000 kB\nMemFree:        700000000 kB\n"
CARD = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 12.0, 5, 16\n"


def changed(path: str, value: Any) -> dict[str, Any]:
    """NODE with the value at a dotted path replaced, or removed where the value is `...`."""
    data = copy.deepcopy(NODE)
    *parents, key = path.split(".")
    inner: Any = data
    for parent in parents:
        inner = inner[int(parent)] if parent.isdecimal() else inner[parent]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return data


class TestContract:
    def test_it_goes_round(self) -> None:
        node = Node.from_json(NODE)
        assert node.to_json() == NODE
        assert node.physical_cores == 16
        assert node.warnings == ()

    def test_a_machine_without_a_card_is_one(self) -> None:
        assert Node.from_json(changed("gpus", [])).gpus == ()

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("cpu", ..., "node.cpu: is missing"),
            ("cpu", 5, "node.cpu: is 5, not an object"),
            ("memory_mib", "768 GB", 'node.memory_mib: is "768 GB", not a whole number above 0'),
            ("memory_mib", True, "node.memory_mib: is true, not a whole number above 0"),
            ("gpus", {}, "node.gpus: is {}, not a list"),
            ("gpus.0.vram_mib", -1, "node.gpus[0].vram_mib: is -1, not a whole number above 0"),
            ("gpus.0.pcie_gb_s", "x16", 'node.gpus[0].pcie_gb_s: is "x16", not a number of GB/s above 0'),
            ("gpus.0.vram", 97887, 'node.gpus[0]."vram": is no key here; write vram_mib'),
            ("gpus.0.compute_capability", 12.0, "node.gpus[0].compute_capability: is 12.0, not a text"),
            ("cpu.threads", 8, "node.cpu.threads: is 8, fewer than its 16 cores"),
        ],
    )
    def test_faults_name_the_path(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(HardwareError) as caught:
            Node.from_json(changed(path, value))
        assert str(caught.value) == message

    @pytest.mark.parametrize("data", [None, [], "node"])
    def test_other_json_is_refused(self, data: Any) -> None:
        with pytest.raises(HardwareError, match=r"node: is .*, not an object"):
            Node.from_json(data)

    def test_bandwidths_of_known_parts_may_be_left_out(self) -> None:
        node = Node.from_json(changed("gpus.0.bandwidth_gb_s", ...))
        assert node.gpus[0].bandwidth_gb_s == 1792 and node.warnings == ()
        assert Node.from_json(changed("memory_bandwidth_gb_s", ...)).memory_bandwidth_gb_s == 614.4

    def test_what_is_not_known_is_said(self) -> None:
        data = changed("gpus.0.name", "Some Card")
        del data["gpus"][0]["bandwidth_gb_s"], data["gpus"][0]["pcie_gb_s"], data["memory_bandwidth_gb_s"]
        data["cpu"]["model"] = "Some Processor"
        keys = [warning.partition(":")[0] for warning in Node.from_json(data).warnings]
        assert keys == ["node.gpus[0].bandwidth_gb_s", "node.gpus[0].pcie_gb_s", "node.memory_bandwidth_gb_s"]


class TestFacts:
    @pytest.mark.parametrize("lscpu", [LSCPU_TEXT, LSCPU_FLAT, LSCPU_NESTED])
    def test_every_form_of_lscpu_gives_the_same_machine(self, lscpu: str) -> None:
        node = node_from_facts(lscpu, MEMINFO, CARD)
        assert node.to_json()["cpu"] == NODE["cpu"]
        assert node.memory_mib == 773000 and node.memory_bandwidth_gb_s == 614.4

    def test_cards_are_read_in_order_with_their_links(self) -> None:
        cards = CARD + "NVIDIA GeForce RTX 3090 Ti, 24564, 8.6, 4, 8\n"
        gpus = node_from_facts(LSCPU_TEXT, MEMINFO, cards).gpus
        first = Gpu("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "12.0", 1792.0, 52.0)
        assert gpus == (first, Gpu("NVIDIA GeForce RTX 3090 Ti", 24564, "8.6", 1008.0, 13.0))

    def test_a_link_that_is_not_told_is_said(self) -> None:
        node = node_from_facts(LSCPU_TEXT, MEMINFO, "NVIDIA H100 PCIe, 81559, 9.0, [N/A], [N/A]")
        assert node.gpus[0].bandwidth_gb_s == 2039.0
        assert any("gpus[0].pcie_gb_s" in line for line in node.warnings)

    def test_the_kernel_knows_better_than_lscpu(self) -> None:
        ids = "\n".join(str(number // 2) for number in range(32))
        cpu = node_from_facts(LSCPU_TEXT, MEMINFO, has_memory="0-3\n", l3_ids=ids).cpu
        assert (cpu.numa_nodes, cpu.l3_domains) == (4, 16)

    @pytest.mark.parametrize(("nodes", "what"), [("0-3", "parts of a socket"), ("0-15", "L3 caches")])
    def test_numa_settings_of_the_bios_are_warned_about(self, nodes: str, what: str) -> None:
        warnings = node_from_facts(LSCPU_TEXT, MEMINFO, has_memory=nodes).warnings
        assert any(what in line and "NPS1" in line for line in warnings)

    def test_what_cannot_be_read_is_named(self) -> None:
        with pytest.raises(HardwareError, match="lscpu: cannot be read"):
            node_from_facts("Architektur: x86_64", MEMINFO)
        with pytest.raises(HardwareError, match="lscpu: cannot be read"):
            node_from_facts("{}", MEMINFO)
        with pytest.raises(HardwareError, match="meminfo"):
            node_from_facts(LSCPU_TEXT, "")
        with pytest.raises(HardwareError, match=r"nvidia-smi: .*has failed.* is no card"):
            node_from_facts(LSCPU_TEXT, MEMINFO, "NVIDIA-SMI has failed because it couldn't communicate")
