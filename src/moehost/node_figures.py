"""From what a node's programs and files say to figures. Standard library only, as it runs on the node; no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moehost import xid_log
from moehost.card_log import Card
from moehost.exposition import Sample

MIB = 1 << 20
DAY_S = 86400
XID_DAYS = 14
STATES = ("active", "activating", "reloading", "deactivating", "inactive", "failed")
# What systemd is asked for of each unit.
PROPERTIES = "Id,LoadState,ActiveState,NRestarts,ExecMainStartTimestamp,StateChangeTimestamp,MemoryCurrent"
SLOWED = ("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown", "sw_power_cap")


def cards(there: Iterable[Card], driver: str) -> Iterator[Sample]:
    """The figures of cards; what one does not say is left out.

    + driver: the driver's version
    """
    for card in there:
        label = {"card": str(card.index)}
        product = card.text("product_name").removeprefix("NVIDIA ")
        yield Sample("moehost_card_info", 1, label | {"bus": card.bus, "product": product, "driver": driver})
        for metric, value in _readings(card).items():
            if value is not None:
                yield Sample(metric, value, label)
        for reason in SLOWED:
            yield Sample("moehost_card_slowed", card.is_slowed(reason), label | {"reason": reason})
        for scope in ("volatile", "aggregate"):
            for kind in ("corrected", "uncorrected"):
                # nvidia-smi calls them correctable, whether they were corrected or not.
                errors = card.errors(scope, kind.replace("ed", "able"))
                yield Sample("moehost_card_ecc_errors_total", errors, label | {"scope": scope, "kind": kind})


def _readings(card: Card) -> dict[str, float | None]:
    link, memory = "pci/pci_gpu_link_info", "fb_memory_usage"
    used, size = card.number(f"{memory}/used"), card.number(f"{memory}/total")
    busy = card.number("utilization/gpu_util")
    return {
        "moehost_card_temperature_celsius": card.number("temperature/gpu_temp"),
        "moehost_card_power_watts": card.power("instant_power_draw", "power_draw", "average_power_draw"),
        "moehost_card_power_limit_watts": card.power_limit_w,
        "moehost_card_memory_used_bytes": None if used is None else used * MIB,
        "moehost_card_memory_size_bytes": None if size is None else size * MIB,
        "moehost_card_utilization_ratio": None if busy is None else busy / 100,
        "moehost_card_pcie_lanes": card.number(f"{link}/link_widths/current_link_width"),
        "moehost_card_pcie_max_lanes": card.number(f"{link}/link_widths/max_link_width"),
        "moehost_card_pcie_generation": card.number(f"{link}/pcie_gen/current_link_gen"),
        "moehost_card_pcie_max_generation": card.number(f"{link}/pcie_gen/max_link_gen"),
    }


def driver(text: str) -> str:
    """The driver's version in `nvidia-smi -q -x`, empty where it is not said."""
    found = re.search(r"<driver_version>([^<]*)</driver_version>", text)
    return found[1].strip() if found else ""


def xids(lines: Iterable[xid_log.Line], now_s: float) -> Iterator[Sample]:
    """How often each Xid of each card was written in the last 14 days, and when it was last."""
    groups: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if line.time_s and line.time_s > now_s - XID_DAYS * DAY_S:
            groups.setdefault((line.bus, line.number), []).append(line.time_s)
    for (bus, number), times in sorted(groups.items()):
        labels = {"bus": bus, "xid": str(number)}
        yield Sample("moehost_xid_lines", len(times), labels)
        yield Sample("moehost_xid_last_time_seconds", max(times), labels)


def blocks(text: str) -> list[dict[str, str]]:
    """Properties of each unit, from `systemctl show --timestamp=unix` of several that are there."""
    found = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n"))
    return [each for each in found if each.get("Id") and each.get("LoadState") != "not-found"]


def units(there: Iterable[Mapping[str, str]]) -> Iterator[Sample]:
    """State of each unit, and since when."""
    for each in there:
        for state in STATES:
            labels = {"unit": each["Id"], "state": state}
            yield Sample("moehost_unit_state", each.get("ActiveState") == state, labels)
        if changed_s := time_s(each.get("StateChangeTimestamp", "")):
            yield Sample("moehost_unit_state_change_time_seconds", changed_s, {"unit": each["Id"]})


def time_s(text: str) -> float | None:
    """A time as systemd prints it with `--timestamp=unix`, None for none."""
    return float(text[1:]) if re.fullmatch(r"@\d+", text) and text != "@0" else None


def process(unit: Mapping[str, str]) -> str:
    """The start of a unit's process in systemd's words, empty without a process."""
    is_there = unit.get("ActiveState") in ("active", "activating", "reloading", "deactivating")
    return unit.get("ExecMainStartTimestamp", "") if is_there else ""


def service(name: str, unit: Mapping[str, str]) -> Iterator[Sample]:
    """What systemd has of a service's unit."""
    labels = {"service": name}
    memory = unit.get("MemoryCurrent", "")
    if started_s := time_s(process(unit)):
        yield Sample("moehost_service_start_time_seconds", started_s, labels)
    if (restarts := unit.get("NRestarts", "")).isdecimal():
        yield Sample("moehost_service_restarts_total", int(restarts), labels)
    # Without control groups of its own systemd says `[not set]`, or the largest number there is.
    if memory.isdecimal() and int(memory) < 1 << 60:
        yield Sample("moehost_service_memory_bytes", int(memory), labels)


def plan(name: str, text: str) -> Iterator[Sample]:
    """What a service's plan.json puts on each device. Raises ValueError, KeyError or TypeError for no plan."""
    for row in json.loads(text)["ledger"]:
        used_mib = sum(
            value
            for key, value in row.items()
            if key.endswith("_mib") and key not in ("capacity_mib", "free_mib", "margin_mib")
        )
        card = row["device"].removeprefix("CUDA") if row["device"].startswith("CUDA") else ""
        labels = {"service": name, "device": row["device"], "card": card}
        yield Sample("moehost_plan_memory_bytes", used_mib * MIB, labels)


def engine(release: str, build: Mapping[str, Any]) -> Iterator[Sample]:
    """The release that is current; nothing without one.

    + release: its name
    + build: its build.json
    """
    if release:
        told = {key: str(build.get(key, "")) for key in ("dialect", "version")}
        yield Sample("moehost_engine_info", 1, {"release": release, **told})


def reboot(since_s: float | None) -> Iterator[Sample]:
    """Whether a reboot is required, and since when."""
    yield Sample("moehost_reboot_required", since_s is not None)
    if since_s is not None:
        yield Sample("moehost_reboot_required_time_seconds", since_s)
