"""What `moehost doctor` finds in `nvidia-smi -q -x`."""

from __future__ import annotations

from typing import Any

import pytest

from moehost import settings
from moehost.doctor.cards import findings, parse
from moehost.finding import Finding
from tests.fixtures.condition import cards, condition


def found(
    links: str | None = None, limits_w: list[int] | None = None, buses: tuple[str, ...] = ("c1",), **changed: str
) -> list[Finding]:
    """The findings of cards with other texts in these elements."""
    texts = condition(cards=cards(*buses, **changed))
    if links is not None:
        texts["links"] = links
    return list(findings(texts, settings.read({"nvidia": {"power_limit_w": limits_w or []}})))


def test_a_card_that_is_well() -> None:
    (one,) = found()
    assert (one.area, one.level) == ("cards", "ok")
    assert one.says == (
        "CUDA0 (RTX PRO 6000 Blackwell Workstation Edition, 0000:c1:00.0): PCIe 5.0 x16, ECC enabled, 600 W, 41 °C"
    )


def test_no_card_is_nothing_to_speak_of() -> None:
    assert list(findings(condition(cards="", links=""), settings.read({}))) == []
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert list(findings(condition(cards=said), settings.read({}))) == []


def test_a_text_that_is_cut_off() -> None:
    (one,) = findings(condition(cards=cards("c1")[:900]), settings.read({}))
    assert (one.level, one.fix) == ("warning", "nvidia-smi -q")


@pytest.mark.parametrize(
    ("settings_of", "links", "buses", "says"),
    [
        ({"nvidia": {"cards": 2}}, "", ("c1",), "1 of 2 cards answer to nvidia-smi"),
        ({"gpu": "require"}, "", (), "0 of 1 cards answer to nvidia-smi"),
        ({}, "0000:01:00.0 16 16 \n0000:c1:00.0 16 16 \n", ("c1",), "1 of 2 cards answer to nvidia-smi"),
        ({}, "0000:01:00.0 16 16 \n", (), None),
    ],
)
def test_a_card_that_does_not_answer(
    settings_of: dict[str, Any], links: str, buses: tuple[str, ...], says: str | None
) -> None:
    texts = condition(cards=cards(*buses), links=links)
    bad = [each for each in findings(texts, settings.read(settings_of)) if each.level != "ok"]
    assert [(each.level, each.says) for each in bad] == ([("error", says)] if says else [])


def test_every_card_has_its_own_findings() -> None:
    two = found(buses=("01", "c1"), links="0000:01:00.0 16 16 \n0000:c1:00.0 8 16 \n")
    assert [(each.level, each.says.split(" ")[0]) for each in two] == [("ok", "CUDA0"), ("warning", "CUDA1")]
    assert [card.bus for card in parse(cards("01", "c1"))] == ["0000:01:00.0", "0000:c1:00.0"]


HOT = "clocks_event_reason_hw_thermal_slowdown"
BRAKE = "clocks_event_reason_hw_power_brake_slowdown"
FAULTS = {
    "narrow, says the driver": ({"current_link_width": "8x"}, "", "warning", "link has 8 of 16 lanes", "seat"),
    "in a narrow slot": ({}, "0000:c1:00.0 8 16 \n", "warning", "link has 8 of 16 lanes", "seat"),
    "in an old slot": ({"max_link_gen": "4"}, None, "warning", "the slot has PCIe 4.0, the card could 5.0", "BIOS"),
    "slow at work": ({"gpu_util": "97 %"}, None, "warning", "at work its link is PCIe 1.0 of 5.0", "riser"),
    "hot": ({HOT: "Active"}, None, "warning", "slowed down, since it is too hot (41 °C)", "fans"),
    "braked": ({BRAKE: "Active"}, None, "warning", "the power supply asks for less", "power supply"),
    "reset wanted": ({"gpu_recovery_action": "Reset"}, None, "error", "asks for: Reset", "-reset -i 0000:c1:00.0"),
    "reboot wanted": ({"gpu_recovery_action": "Reboot"}, None, "error", "asks for: Reboot", "systemctl reboot"),
    "row pending": ({"remapped_row_pending": "Yes"}, None, "warning", "at the next reset", "--gpu-reset"),
    "row failure": ({"remapped_row_failure": "Yes"}, None, "error", "can't be repaired", "nvidia-bug-report.sh"),
    "worn": ({"sram_threshold_exceeded": "Yes"}, None, "error", "can't be repaired", "replaced"),
    "uncorrected": ({"dram_uncorrectable": "2"}, None, "error", "2 memory error(s) that ECC could", "--gpu-reset"),
    "ECC to change": ({"pending_ecc": "Disabled"}, None, "warning", "until the next reboot, then disabled", "reboot"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "links", "level", "says", "fix"), FAULTS.values(), ids=FAULTS)
def test_a_fault(changed: dict[str, str], links: str | None, level: str, says: str, fix: str) -> None:
    (one,) = found(links, **changed)
    assert one.level == level
    assert says in one.says
    assert fix in (one.fix or "")


def test_a_host_that_sees_a_part_of_the_memory() -> None:
    text = cards("c1").replace("<total>131072 MiB</total>", "<total>256 MiB</total>")
    (one,) = findings(condition(cards=text), settings.read({}))
    assert "sees 256 of its 97887 MiB (resizable BAR is off)" in one.says


def test_errors_of_long_ago_are_a_warning() -> None:
    text = cards("c1")
    head, aggregate = text.split("<aggregate>")
    text = head + "<aggregate>" + aggregate.replace("<dram_uncorrectable>0<", "<dram_uncorrectable>3<")
    (one,) = findings(condition(cards=text), settings.read({}))
    assert (one.level, "3 memory error(s) in its life" in one.says) == ("warning", True)


@pytest.mark.parametrize(
    "tag", ["current_ecc", "pending_ecc", "dram_uncorrectable", "gpu_recovery_action", "current_power_limit"]
)
def test_a_card_that_says_little(tag: str) -> None:
    (one,) = found(**{tag: "N/A"})
    assert one.level == "ok"


def test_names_of_older_drivers() -> None:
    text = cards("c1", current_power_limit="450.00 W", **{HOT: "Active"})
    text = text.replace("clocks_event_reason", "clocks_throttle_reason").replace(
        "gpu_power_readings", "power_readings"
    )
    text = text.replace("current_power_limit", "power_limit")
    says = [each.says for each in findings(condition(cards=text), settings.read({}))]
    assert "power limit 450 W, which no setting asks for" in says[0]
    assert "too hot" in says[1]


@pytest.mark.parametrize(
    ("limit", "settings_w", "says", "fix"),
    [
        ("450.00 W", [], "power limit 450 W, which no setting asks for", "-pl 600, or set nvidia.power_limit_w"),
        ("600.00 W", [450], "power limit 600 W, the settings say 450 W", "nvidia-smi -i 0000:c1:00.0 -pl 450"),
        ("600.00 W", [700], "is 700, the card takes 150 to 600 W", "correct nvidia.power_limit_w"),
        ("450.00 W", [450], None, None),
        ("450.00 W", [450, 300], None, None),
    ],
)
def test_power_limit(limit: str, settings_w: list[int], says: str | None, fix: str | None) -> None:
    (one,) = found(limits_w=settings_w, current_power_limit=limit)
    assert (one.level == "ok") == (says is None)
    assert (says or "450 W") in one.says
    assert (fix or "") in (one.fix or "")


def test_a_power_limit_for_each_card() -> None:
    two = found(limits_w=[600, 400], buses=("01", "c1"), links="")
    assert [each.level for each in two] == ["ok", "warning"]
    one_for_all = found(limits_w=[400], buses=("01", "c1"), links="")
    assert [each.level for each in one_for_all] == ["warning", "warning"]
