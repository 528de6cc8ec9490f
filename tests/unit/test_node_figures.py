"""Figures from what a node's programs say."""

from __future__ import annotations

import json

import pytest

from moehost import card_log, node_figures, xid_log
from moehost.exposition import Sample
from moehost.figures import KINDS
from moehost.plan import make
from tests.fixtures.condition import cards
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f
from tests.unit.test_unit import service

MIB = 1 << 20
UNITS = """\
Id=llama-server-q.service
LoadState=loaded
ActiveState=active
NRestarts=2
ExecMainStartTimestamp=@1795973944
StateChangeTimestamp=@1795974044
MemoryCurrent=268435456000

Id=moehost-gone.service
LoadState=not-found
ActiveState=inactive

Id=llama-server-down.service
LoadState=loaded
ActiveState=failed
NRestarts=3
ExecMainStartTimestamp=@1795970000
StateChangeTimestamp=
MemoryCurrent=[not set]
"""


def values(samples: object, metric: str, **labels: str) -> list[float]:
    """Values of the samples of this name with these labels."""
    return [
        each.value
        for each in samples  # type: ignore[attr-defined]
        if each.metric == metric and labels.items() <= each.labels.items()
    ]


class TestCards:
    def test_one_that_is_well(self) -> None:
        found = list(node_figures.cards(card_log.parse(cards("c1")), "580.173.02"))
        assert (
            Sample(
                "moehost_card_info",
                1,
                {
                    "card": "0",
                    "bus": "0000:c1:00.0",
                    "product": "RTX PRO 6000 Blackwell Workstation Edition",
                    "driver": "580.173.02",
                },
            )
            in found
        )
        assert {each.metric: each.value for each in found if set(each.labels) == {"card"}} == {
            "moehost_card_temperature_celsius": 41,
            "moehost_card_power_watts": 61.52,
            "moehost_card_power_limit_watts": 600,
            "moehost_card_memory_used_bytes": 0,
            "moehost_card_memory_size_bytes": 97887 * MIB,
            "moehost_card_utilization_ratio": 0,
            "moehost_card_pcie_lanes": 16,
            "moehost_card_pcie_max_lanes": 16,
            "moehost_card_pcie_generation": 1,
            "moehost_card_pcie_max_generation": 5,
        }
        assert {each.metric for each in found} <= set(KINDS)

    def test_errors_heat_and_load(self) -> None:
        text = cards(
            "41",
            "c1",
            dram_uncorrectable="2",
            gpu_util="37 %",
            used="90000 MiB",
            clocks_event_reason_hw_thermal_slowdown="Active",
        )
        found = list(node_figures.cards(card_log.parse(text), ""))
        assert values(found, "moehost_card_ecc_errors_total", card="1", scope="volatile", kind="uncorrected") == [2]
        assert values(found, "moehost_card_ecc_errors_total", card="1", scope="aggregate", kind="corrected") == [
            7 * 1
        ]
        assert values(found, "moehost_card_utilization_ratio") == [0.37, 0.37]
        assert values(found, "moehost_card_memory_used_bytes", card="0") == [90000 * MIB]
        assert values(found, "moehost_card_slowed", reason="hw_thermal_slowdown") == [1, 1]
        assert values(found, "moehost_card_slowed", reason="sw_power_cap") == [0, 0]

    def test_what_is_not_said_is_left_out(self) -> None:
        text = cards("c1", gpu_temp="N/A", instant_power_draw="[N/A]", average_power_draw="N/A", gpu_util="N/A")
        found = list(node_figures.cards(card_log.parse(text), ""))
        for metric in ("temperature_celsius", "power_watts", "utilization_ratio"):
            assert values(found, f"moehost_card_{metric}") == []
        assert values(found, "moehost_card_power_limit_watts") == [600]

    def test_the_drivers_version(self) -> None:
        assert node_figures.driver(cards("c1")) == "580.173.02"
        assert node_figures.driver("NVIDIA-SMI has failed") == ""


def test_xids_of_the_last_fortnight_by_card_and_number() -> None:
    now_s = 1_794_700_000.0
    log = "".join(
        f"{now_s - age_s:.6f} node kernel: NVRM: Xid (PCI:0000:c1:00): {number}, pid=1, name=x\n"
        for age_s, number in ((15 * 86400, 79), (3 * 86400, 13), (7200, 79), (60, 13), (30, 13))
    )
    found = list(node_figures.xids(xid_log.lines(log), now_s))
    assert values(found, "moehost_xid_lines", bus="0000:c1:00", xid="79") == [1]
    assert values(found, "moehost_xid_lines", xid="13") == [3]
    assert values(found, "moehost_xid_last_time_seconds", xid="13") == [now_s - 30]
    assert list(node_figures.xids([], now_s)) == []


class TestUnits:
    there = node_figures.blocks(UNITS)

    def test_one_that_is_not_there_is_left_out(self) -> None:
        assert [each["Id"] for each in self.there] == ["llama-server-q.service", "llama-server-down.service"]

    def test_each_is_in_one_state(self) -> None:
        found = list(node_figures.units(self.there))
        assert values(found, "moehost_unit_state", unit="llama-server-q.service") == [1, 0, 0, 0, 0, 0]
        assert values(found, "moehost_unit_state", unit="llama-server-down.service", state="failed") == [1]
        assert values(found, "moehost_unit_state_change_time_seconds") == [1795974044]

    def test_a_service_that_runs(self) -> None:
        found = list(node_figures.service("q", self.there[0]))
        assert {each.metric: each.value for each in found} == {
            "moehost_service_start_time_seconds": 1795973944,
            "moehost_service_restarts_total": 2,
            "moehost_service_memory_bytes": 268435456000,
        }

    def test_one_that_has_failed_has_no_process_and_no_memory(self) -> None:
        found = list(node_figures.service("down", self.there[1]))
        assert {each.metric: each.value for each in found} == {"moehost_service_restarts_total": 3}
        assert node_figures.process(self.there[1]) == ""

    @pytest.mark.parametrize("memory", ["18446744073709551615", "[not set]", ""])
    def test_a_control_group_that_counts_nothing(self, memory: str) -> None:
        assert values(node_figures.service("q", {"MemoryCurrent": memory}), "moehost_service_memory_bytes") == []


def test_a_plan_is_the_ledger_in_bytes() -> None:
    plan = make(service(), "/srv/m.gguf", as_set(qwen35_397b()), epyc_9175f(2), "ik")
    found = list(node_figures.plan("qwen", json.dumps(plan.to_json("ik"))))
    for row in plan.placement.rows[:2]:
        card = row.device.removeprefix("CUDA")
        assert values(found, "moehost_plan_memory_bytes", card=card, device=row.device) == [row.used_mib * MIB]
    assert [each.labels["card"] for each in found] == ["0", "1", ""]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"ledger": 1}', '{"ledger": [{}]}'])
def test_a_plan_that_is_none(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        list(node_figures.plan("q", text))


def test_engine_and_reboot() -> None:
    assert list(node_figures.engine("", {})) == []
    (info,) = node_figures.engine("8337-0123", {"dialect": "ik", "version": "4821"})
    assert info.labels == {"release": "8337-0123", "dialect": "ik", "version": "4821"}
    assert [each.value for each in node_figures.reboot(None)] == [0]
    assert [each.value for each in node_figures.reboot(5.0)] == [1, 5]
