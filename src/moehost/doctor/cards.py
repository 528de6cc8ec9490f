"""The cards: link, resizable BAR, memory errors, power, heat.

What it reads is `nvidia-smi -q -x`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moehost.card_log import Card, parse
from moehost.doctor.xid import RESET
from moehost.finding import Finding
from moehost.settings import Node

# Reasons for lower clocks that are faults; `gpu_idle`, `sw_power_cap` and the like are ordinary.
SLOWED = {
    "hw_thermal_slowdown": ("it is too hot", "clean filters, check fans and the air's way"),
    "sw_thermal_slowdown": ("it is too warm", "check fans and the air's way, or lower nvidia.power_limit_w"),
    "hw_power_brake_slowdown": ("the power supply asks for less", "check the power supply and the card's cables"),
}


def findings(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """What there is to say of the cards that the driver sees; of others the driver's findings tell."""
    try:
        there = parse(texts["cards"])
    except ValueError as error:
        yield Finding("cards", "warning", str(error), "nvidia-smi -q")
        return
    yield from missing(there, len(texts["links"].splitlines()), node)
    links = dict(line.split(None, 1) for line in texts["links"].splitlines() if " " in line)
    for card in there:
        found = [
            *link(card, links.get(card.bus, "")),
            *resizable_bar(card),
            *memory_errors(card),
            *power(card, node.nvidia.power_limit_w),
            *heat(card),
        ]
        yield from found or [Finding("cards", "ok", f"{card.label}: {_summary(card)}")]


def _summary(card: Card) -> str:
    link = f"PCIe {card.text('pci/pci_gpu_link_info/pcie_gen/max_link_gen')}.0"
    width = card.text("pci/pci_gpu_link_info/link_widths/current_link_width")
    facts = [
        f"{link} x{width.rstrip('x')}" if width else "",
        f"ECC {card.text('ecc_mode/current_ecc').lower()}" if card.text("ecc_mode/current_ecc") else "",
        f"{card.power_limit_w:.0f} W" if card.power_limit_w else "",
        card.text("temperature/gpu_temp").replace(" C", " °C"),
    ]
    return ", ".join(filter(None, facts)) or "answers"


def missing(there: list[Card], on_bus: int, node: Node) -> Iterator[Finding]:
    """Whether as many cards answer as there should be.

    + on_bus: cards that the kernel sees
    """
    # Where none answers, and none has to, the driver's findings say what there is to say.
    wanted = node.nvidia.cards or (max(on_bus, 1) if there or node.gpu == "require" else 0)
    if len(there) < wanted:
        says = f"{len(there)} of {wanted} cards answer to nvidia-smi"
        yield Finding("cards", "error", says, "journalctl -k -g 'NVRM|AER' says why; then systemctl reboot")


def link(card: Card, widths: str) -> Iterator[Finding]:
    """Whether the link to the host is as wide and fast as the card's own.

    + widths: lanes in use and lanes of the card, by the kernel
    """
    path = "pci/pci_gpu_link_info"
    said = [card.number(f"{path}/link_widths/{key}_link_width") for key in ("current", "max")]
    lanes = [int(each) for each in widths.split() if each.isdecimal()]
    # The driver's maximum is that of slot and card together, the kernel's that of the card.
    now, most = lanes if len(lanes) == 2 else (said[0] or 0, said[1] or 0)
    seat = "seat the card anew, check the riser, and in the BIOS that the slot's lanes are not shared"
    if 0 < now < most:
        yield Finding("cards", "warning", f"{card.label}: link has {now:.0f} of {most:.0f} lanes", seat)
    generation = {
        key: card.number(f"{path}/pcie_gen/{key}_link_gen") or 0 for key in ("current", "max", "max_device")
    }
    if 0 < generation["max"] < generation["max_device"]:
        says = f"the slot has PCIe {generation['max']:.0f}.0, the card could {generation['max_device']:.0f}.0"
        fix = "in the BIOS: the slot's link speed Auto or Gen5; else a slot or riser that can"
        yield Finding("cards", "warning", f"{card.label}: {says}", fix)
    # An idle card lowers its link to save power; only one at work says what the link can.
    is_busy = (card.number("utilization/gpu_util") or 0) >= 20
    if is_busy and 0 < generation["current"] < generation["max"]:
        says = f"at work its link is PCIe {generation['current']:.0f}.0 of {generation['max']:.0f}.0"
        yield Finding("cards", "warning", f"{card.label}: {says}", seat)


def resizable_bar(card: Card) -> Iterator[Finding]:
    """Whether the host sees all of the card's memory."""
    bar_mib, vram_mib = card.number("bar1_memory_usage/total"), card.number("fb_memory_usage/total")
    if bar_mib and vram_mib and bar_mib < vram_mib:
        says = f"the host sees {bar_mib:.0f} of its {vram_mib:.0f} MiB (resizable BAR is off)"
        fix = "in the BIOS: Above 4G Decoding and Re-Size BAR Support on"
        yield Finding("cards", "warning", f"{card.label}: {says}", fix)


def memory_errors(card: Card) -> Iterator[Finding]:
    """Errors of the card's memory: what they are, and what they make due."""
    reset = RESET.format(bus=card.bus)
    replace = "have the card replaced; nvidia-bug-report.sh writes what its maker asks for"
    if now := card.errors("volatile", "uncorrectable"):
        yield Finding("cards", "error", f"{card.label}: {now} memory error(s) that ECC could not correct", reset)
    elif before := card.errors("aggregate", "uncorrectable"):
        says = f"{before} memory error(s) in its life that ECC could not correct, none since the driver's start"
        yield Finding(
            "cards", "warning", f"{card.label}: {says}", "nvidia-smi -q -d ECC,ROW_REMAPPER shows whether it grows"
        )
    failed = ("remapped_rows/remapped_row_failure", "ecc_errors/aggregate/sram_threshold_exceeded")
    if any(card.text(path) == "Yes" for path in failed):
        yield Finding("cards", "error", f"{card.label}: its memory can't be repaired any more", replace)
    pending = ("remapped_rows/remapped_row_pending", "retired_pages/pending_retirement")
    if any(card.text(path) == "Yes" for path in pending):
        says = "a bad part of its memory is replaced at the next reset"
        yield Finding("cards", "warning", f"{card.label}: {says}", reset)
    mode = [card.text(f"ecc_mode/{key}_ecc") for key in ("current", "pending")]
    if all(mode) and mode[0] != mode[1]:
        says = f"ECC is {mode[0].lower()} until the next reboot, then {mode[1].lower()}"
        yield Finding("cards", "warning", f"{card.label}: {says}", "systemctl reboot")
    action = card.text("gpu_recovery_action")
    if action not in ("", "None"):
        fix = "systemctl reboot" if "reboot" in action.lower() else reset
        yield Finding("cards", "error", f"{card.label}: the driver asks for: {action}", fix)


def power(card: Card, settings_w: list[int]) -> Iterator[Finding]:
    """Whether the power limit is what the settings say, or without a setting the card's own.

    + settings_w: `nvidia.power_limit_w`
    """
    limit_w, default_w = card.power_limit_w, card.power("default_power_limit")
    if not limit_w:
        return
    of_each = settings_w * (card.index + 1) if len(settings_w) == 1 else settings_w
    wanted_w = of_each[card.index] if card.index < len(of_each) else None
    least_w, most_w = card.power("min_power_limit"), card.power("max_power_limit")
    if wanted_w is None:
        if default_w and abs(limit_w - default_w) > 1:
            says = f"power limit {limit_w:.0f} W, which no setting asks for (the card's own is {default_w:.0f} W)"
            fix = f"nvidia-smi -i {card.bus} -pl {default_w:.0f}, or set nvidia.power_limit_w"
            yield Finding("cards", "warning", f"{card.label}: {says}", fix)
    elif least_w and most_w and not least_w <= wanted_w <= most_w:
        says = f"nvidia.power_limit_w is {wanted_w}, the card takes {least_w:.0f} to {most_w:.0f} W"
        yield Finding("cards", "warning", f"{card.label}: {says}", "correct nvidia.power_limit_w in the inventory")
    elif abs(limit_w - wanted_w) > 1:
        says = f"power limit {limit_w:.0f} W, the settings say {wanted_w} W"
        yield Finding("cards", "warning", f"{card.label}: {says}", f"nvidia-smi -i {card.bus} -pl {wanted_w}")


def heat(card: Card) -> Iterator[Finding]:
    """Whether heat or the power supply slows the card down just now."""
    for reason, (why, fix) in SLOWED.items():
        if card.is_slowed(reason):
            degrees = card.text("temperature/gpu_temp").replace(" C", " °C")
            yield Finding("cards", "warning", f"{card.label}: slowed down, since {why} ({degrees})", fix)
