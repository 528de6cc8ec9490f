"""Modules of memory, by what dmidecode says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

# How boards name a channel: `P0 CHANNEL A`, `P0_Node0_Channel3_Dimm0`, `CPU1_DIMM_A1`, `P1-DIMMC1`, `DIMM_P0_B0`.
CHANNEL = re.compile(r".*?(CHANNEL ?([A-Z]|\d+)|DIMM[ _]?(P\d_)?[A-Z](?=\d|$))", re.IGNORECASE)
MIB = {"MB": 1, "GB": 1024, "TB": 1 << 20}


@dataclass(frozen=True)
class Module:
    """A module of memory: where it is, what it holds, what it could run at and what it does, MT/s (0: not said)."""

    channel: str | None
    size_mib: int
    rated_mt_s: int
    mt_s: int


def modules(text: str) -> list[Module]:
    """The modules that are there, by `dmidecode --type memory`; none without root or dmidecode."""
    found = []
    for block in text.split("Memory Device\n")[1:]:
        fields = dict(re.findall(r"^\s*([\w ]+): *(.*?) *$", block, re.MULTILINE))
        size = re.fullmatch(r"(\d+) ([MGT]B)", fields.get("Size", ""))
        if not size:
            continue
        named = CHANNEL.match(fields.get("Bank Locator", "")) or CHANNEL.match(fields.get("Locator", ""))
        channel = named[0] if named else None
        speed = fields.get("Configured Memory Speed") or fields.get("Configured Clock Speed", "")
        found.append(Module(channel, int(size[1]) * MIB[size[2]], _number(fields.get("Speed", "")), _number(speed)))
    return found


def filled_channels(there: list[Module]) -> int:
    """How many channels have a module; where a board does not name them, a module counts as a channel."""
    named = {each.channel for each in there}
    return len(there) if None in named else len(named)


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0
