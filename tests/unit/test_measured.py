"""What a measurement means, and what the planner makes of it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from moehost import measured
from moehost.hardware import node_from_facts
from moehost.measured import Measured, memory_verdict, promise, summary
from moehost.model import Model
from moehost.speed import Speed
from tests.fixtures.planned_node import machine
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.test_speed import load

CARD = "NVIDIA RTX PRO 6000 Blackwell"
EPYC = "AMD EPYC 9175F 16-Core Processor"
QWEN = Model.from_gguf(as_set(qwen35_397b()))
# The processor's maximum, 12 channels of DDR5-6400.
NOMINAL_GB_S = 614.4


def data(read_gb_s: float = 480.0, **more: Any) -> dict[str, Any]:
    """A measured.json of the machine of tests/fixtures/planned_node.py."""
    return {
        "measured_at": "2026-11-24T19:59:13Z",
        "kernel": "6.12.0",
        "hardware": {"cpu_model": EPYC, "cores": 16, "memory_mib": 791552000 // 1024},
        "promised": dataclasses.asdict(promise((12, 6400), 1, 0, 0) or pytest.fail("promises nothing")),
        "servers_running": [],
        "memory": {
            "threads": 16,
            "array_mib": 2048,
            "read_gb_s": {"best": read_gb_s, "median": read_gb_s},
            "triad_gb_s": {"best": read_gb_s * 0.9, "median": read_gb_s * 0.9},
            "policy": "local",
        },
        **more,
    }


def parsed(**more: Any) -> Measured:
    return Measured.parse(json.dumps(data(**more))) or pytest.fail("can't be read")


def node(text: str, cards: int = 1, lscpu: str | None = None) -> Any:
    texts = machine(cards)
    return node_from_facts(**{**texts, "lscpu": lscpu or texts["lscpu"], "measured": text})


class TestPlanner:
    def test_a_healthy_machine_plans_as_if_nothing_had_been_measured(self) -> None:
        found = node(json.dumps(data()))
        assert found == node("")
        assert any("measured 480 GB/s read" in each for each in found.assumptions)

    def test_slow_memory_decodes_slower(self) -> None:
        found = node(json.dumps(data(read_gb_s=215.0)))
        assert found.memory_bandwidth_gb_s == 310.0
        assert Speed(found).decode_s(load(0, QWEN)) > Speed(node("")).decode_s(load(0, QWEN))

    def test_healthy_and_short_join_without_a_step(self) -> None:
        edge = NOMINAL_GB_S * measured.HEALTHY_SHARE
        peaks = [parsed(read_gb_s=edge + each).peak_gb_s(NOMINAL_GB_S) for each in (-0.1, 0.1)]
        assert peaks == [610.0, NOMINAL_GB_S]

    def test_noise_changes_no_plan(self) -> None:
        assert node(json.dumps(data(read_gb_s=215.0))) == node(json.dumps(data(read_gb_s=217.0)))

    def test_fewer_channels_promise_less(self) -> None:
        eight = dataclasses.asdict(promise((12, 6400), 1, 8, 4800) or pytest.fail("promises nothing"))
        assert node(json.dumps(data(read_gb_s=260.0, promised=eight))).memory_bandwidth_gb_s == 307.2

    def test_an_unknown_processor_is_as_fast_as_it_reads(self) -> None:
        lscpu = machine()["lscpu"].replace(EPYC, "Zhaoxin")
        hardware = data()["hardware"] | {"cpu_model": "Zhaoxin"}
        text = json.dumps(data(read_gb_s=40.0, promised=None, hardware=hardware))
        assert node(text, lscpu=lscpu).memory_bandwidth_gb_s == 50.0

    @pytest.mark.parametrize(
        "hardware", [{"cpu_model": "AMD EPYC 9355"}, {"cores": 15}, {"memory_mib": 773000 // 2}], ids=str
    )
    def test_other_hardware_is_not_used(self, hardware: dict[str, Any]) -> None:
        found = node(json.dumps(data(read_gb_s=100.0, hardware=data()["hardware"] | hardware)))
        assert found == node("")
        assert "/etc/moehost/measured.json: is of other hardware, not used; run moehost measure again" in (
            found.assumptions
        )

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"memory": 1}', json.dumps(data(read_gb_s=0.0))])
    def test_a_file_that_is_broken_is_not_used(self, text: str) -> None:
        assert node(text) == node("")
        assert any("can't be read" in each for each in node(text).assumptions)

    def test_short_beside_a_server_is_not_used(self) -> None:
        found = node(json.dumps(data(read_gb_s=100.0, servers_running=["pid 7, 300000 MiB"])))
        assert found == node("")
        assert any("beside a running llama-server" in each for each in found.assumptions)

    def test_a_card_has_the_link_that_was_measured(self) -> None:
        cards = [{"card": CARD, "host_to_device_gb_s": 26.6}]
        found = node(json.dumps(data(cards=cards)), cards=2)
        assert [each.pcie_gb_s for each in found.gpus] == [27.0, 52.0]
        assert "node.gpus[0].pcie_gb_s: measured 27 GB/s from the host" in found.assumptions

    def test_another_card_has_not(self) -> None:
        cards = [{"card": "NVIDIA H100", "host_to_device_gb_s": 26.6}]
        assert node(json.dumps(data(cards=cards))).gpus[0].pcie_gb_s == 52.0


class TestVerdict:
    @pytest.mark.parametrize(
        ("read_gb_s", "filled", "numa_nodes", "says"),
        [
            (451, 0, 1, "451 GB/s read of 614 promised (73%), taking all channels as filled: as good as it gets"),
            (451, 12, 1, "451 GB/s read of 614 promised (73%): as good as it gets on this socket"),
            (260, 8, 1, "260 GB/s read of 410 promised (63%): a little short"),
            (340, 8, 1, "(83%): as good as it gets on this socket with 8 of 12 channels"),
            (394, 0, 1, "looks like 11 of 12 channels, or slower modules; install dmidecode to know"),
            (200, 12, 4, "the sockets are split into NUMA nodes: set NPS1"),
            (200, 12, 1, "half or less: see that every channel has a module"),
            (900, 12, 1, "more than the memory can do"),
        ],
    )
    def test_in_one_line(self, read_gb_s: float, filled: int, numa_nodes: int, says: str) -> None:
        promised = promise((12, 6400), 1, filled, 6400 if filled else 0) or pytest.fail("promises nothing")
        found = parsed(read_gb_s=read_gb_s, promised=dataclasses.asdict(promised))
        assert says in memory_verdict(found, numa_nodes, 1)

    def test_all_that_was_measured_is_told(self) -> None:
        disk = {"path": "/srv/m.gguf", "read_gb_s": 6.5, "read_mib": 60000, "elapsed_s": 10.0, "is_direct": False}
        cards = [{"card": CARD, "host_to_device_gb_s": 54.3}]
        lines = "\n".join(summary(data(disk=disk, cards=cards), 1, 1))
        assert "432 GB/s triad; 16 threads" in lines
        assert "disk: 6.50 GB/s, 60000 MiB of /srv/m.gguf; not a direct read" in lines
        assert f"card 0: 54.3 GB/s from the host ({CARD})" in lines

    def test_what_was_not_measured_is_told(self) -> None:
        lines = summary(data(cards_refused="cuInit answers with error 999"), 1, 1)
        assert lines[-1] == "cards: were not measured: cuInit answers with error 999"
        assert lines[-2].startswith("disk: there is no file to read yet")
