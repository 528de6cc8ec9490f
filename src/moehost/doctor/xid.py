"""What the driver has written into the kernel's log (Xid): what it means, and what to do.

Sources: NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors), its immediate actions for cards since Ampere;
NVIDIA/open-gpu-kernel-modules #1045 and #1151 (61, 79, 119 and 154 on Blackwell at home).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost.doctor.system import ago, now_s, uptime_s
from moehost.finding import Finding, Level
from moehost.xid_log import lines

ANEW = "systemctl restart 'llama-server-*'; if it comes again, go back: moehost engine rollback @HOST"
RESET = "systemctl stop 'llama-server-*' && nvidia-smi --gpu-reset -i {bus}; if that fails, systemctl reboot"
REBOOT = (
    "systemctl reboot; if it comes again: power off, seat card and cables anew, then try pcie_aspm=off on the "
    "kernel's command line"
)
LOOK = "nvidia-smi -q -d ECC,ROW_REMAPPER -i {bus}"
CATALOGUE = "look it up: docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"


@dataclass(frozen=True)
class Meaning:
    """What an Xid says, how bad it is, and what to do; `{bus}` stands for the card's address."""

    says: str
    level: Level
    fix: str | None


MEANINGS = {
    8: Meaning("the card was not through with a program's work in time", "warning", ANEW),
    13: Meaning("a program's kernel did what it must not; seldom the card", "warning", ANEW),
    31: Meaning("a program read memory that is not its own; seldom the card", "warning", ANEW),
    43: Meaning("a program's work was ended after a fault of its own; the card is well", "warning", ANEW),
    45: Meaning(
        "a program's work was cleared away, as after a kill; the reason is another Xid or nobody's", "ok", None
    ),
    48: Meaning("a memory error that ECC could not correct", "error", RESET),
    61: Meaning("the card's power controller stopped at a breakpoint", "error", RESET),
    62: Meaning("the card's power controller has halted", "error", RESET),
    63: Meaning("a bad row of the card's memory is replaced, from the next reset on", "warning", LOOK),
    64: Meaning("a bad row of the card's memory could not be replaced", "error", f"{RESET}; then replace the card"),
    69: Meaning("a program gave the card a command that it does not know", "warning", ANEW),
    74: Meaning("NVLink has failed, here or at the other end", "error", f"nvidia-smi nvlink -e; {RESET}"),
    79: Meaning("the card has fallen off the bus: link, power or heat", "error", REBOOT),
    92: Meaning("many memory errors, all corrected", "warning", LOOK),
    94: Meaning("a memory error that one program alone has felt", "warning", f"{ANEW}; {LOOK}"),
    95: Meaning("a memory error that may have changed any program's data", "error", RESET),
    109: Meaning("the card did not change over to another program in time", "error", RESET),
    119: Meaning("the card's firmware (GSP) does not answer", "error", RESET),
    120: Meaning("the card's firmware (GSP) has failed", "error", RESET),
    140: Meaning("a memory error that could not be corrected nor its place be given up", "error", RESET),
}


@dataclass(frozen=True)
class Xid:
    """One line of the log. `age_s` is None where the log has no clock: then it is of this boot."""

    number: int
    bus: str
    text: str
    age_s: int | None


def parse(texts: Mapping[str, str]) -> list[Xid]:
    """The lines of the text `xids`, oldest first."""
    return [
        Xid(each.number, each.bus, each.text, now_s(texts) - int(each.time_s) if each.time_s else None)
        for each in lines(texts["xids"])
    ]


def findings(texts: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each Xid of each card, in the log's order; one from before the last boot is a warning at most."""
    groups: dict[tuple[int, str], list[Xid]] = {}
    for xid in parse(texts):
        groups.setdefault((xid.number, xid.bus), []).append(xid)
    for (number, bus), group in groups.items():
        last, meaning = group[-1], _meaning(number, group[-1].text)
        is_over = last.age_s is not None and last.age_s > uptime_s(texts)
        level: Level = "warning" if is_over and meaning.level == "error" else meaning.level
        when = (
            "" if last.age_s is None else f", {ago(last.age_s)} ago{' and before the last boot' if is_over else ''}"
        )
        times = f", {len(group)} times" if len(group) > 1 else ""
        says = f"Xid {number} of card {bus}{times}{when}: {meaning.says}"
        # A device's function is part of the address for nvidia-smi, and not of that in the log.
        fix = meaning.fix.format(bus=bus if "." in bus else f"{bus}.0") if meaning.fix else None
        yield Finding("kernel log", level, says, fix)
    if not groups:
        yield Finding("kernel log", "ok", "no Xid in the last 14 days")


def _meaning(number: int, text: str) -> Meaning:
    if number == 154:
        action = re.search(r"to 0x\w+ \(([^)]*)\)", text)
        wanted = action[1] if action else text
        says = f"what the driver asks for has changed: {wanted}"
        if wanted == "None":
            return Meaning(says, "ok", None)
        return Meaning(says, "error", REBOOT if "reboot" in wanted.lower() else RESET)
    return MEANINGS.get(number, Meaning("not one that moehost knows", "warning", CATALOGUE))
