"""What `moehost measure` has found on a machine: what it means, and what the planner may take from it.

The planner's constants are shares of the memory's nominal bandwidth, fitted to machines that were well. A machine
whose reading reaches the healthy share of what is promised therefore keeps the promised value; one that falls short
is as fast as a healthy machine of

    promised * min(1, read / (promised * HEALTHY_SHARE))

which joins the two without a step. Where nothing is promised, the processor being unknown, the reading counts as the
middle of the healthy range.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PATH = "/etc/moehost/measured.json"
# What STREAM's triad reaches of the nominal bandwidth where all is well: 650 to 780 of 921.6 GB/s (HBv4: two EPYC
# 9V33X, 24 x DDR5-4800) and 330 to 350 of 409.6 (HBv3: two EPYC 7V73X, 16 x DDR4-3200) by Microsoft's page on STREAM
# for Azure's HPC machines, which is 71 to 85 %. A processor of few cores may stay below: one CCD of an EPYC 9005
# reads some 52 GB/s.
HEALTHY_SHARE = 0.70
MIDDLE_SHARE = 0.80
HALF_SHARE = 0.55
# MemTotal changes with the kernel and its reservations, not by a module.
MEMORY_TOLERANCE = 0.02
# A plan should not change for noise: bandwidths that are scaled are rounded to so many GB/s, links to one.
STEP_GB_S = 10


@dataclass(frozen=True)
class Hardware:
    """By what a machine is recognised: a file of other hardware says nothing about this one."""

    cpu_model: str
    cores: int
    memory_mib: int

    def is_like(self, other: Hardware) -> bool:
        """Whether it is the same machine, as far as can be seen."""
        difference = abs(self.memory_mib - other.memory_mib)
        return (self.cpu_model, self.cores) == (other.cpu_model, other.cores) and (
            difference <= MEMORY_TOLERANCE * max(self.memory_mib, other.memory_mib)
        )


@dataclass(frozen=True)
class Promise:
    """The memory's nominal bandwidth, and where that is known from; `wanted` are the channels of the processors."""

    gb_s: float
    channels: int
    wanted: int
    mt_s: int
    is_read: bool  # from the modules themselves; else the processor's maximum


@dataclass(frozen=True)
class Measured:
    """What measured.json holds, as far as plans depend on it (GB/s, decimal)."""

    hardware: Hardware
    read_gb_s: float
    triad_gb_s: float
    promised: Promise | None
    cards: tuple[tuple[str, float], ...]
    is_disturbed: bool

    @classmethod
    def parse(cls, text: str) -> Measured | None:
        """Reads measured.json; None where there is none, or one that can't be read."""
        try:
            data = json.loads(text)
            memory, promised = data["memory"], data["promised"]
            found = cls(
                Hardware(**data["hardware"]),
                float(memory["read_gb_s"]["best"]),
                float(memory["triad_gb_s"]["best"]),
                Promise(**promised) if promised else None,
                tuple((str(each["card"]), float(each["host_to_device_gb_s"])) for each in data.get("cards", ())),
                bool(data["servers_running"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if found.read_gb_s > 0 and all(gb_s > 0 for _, gb_s in found.cards) else None

    def share(self, promised_gb_s: float) -> float:
        """How much of a promise is read."""
        return self.read_gb_s / promised_gb_s

    def peak_gb_s(self, nominal_gb_s: float) -> float | None:
        """The nominal bandwidth of a healthy machine that is as fast as this one; None where it can't be said.

        + nominal_gb_s: the processors' maximum; 0 for processors that are not known
        """
        promised_gb_s = self.promised.gb_s if self.promised else nominal_gb_s
        if not promised_gb_s:
            return None if self.is_disturbed else _rounded(self.read_gb_s / MIDDLE_SHARE)
        if self.share(promised_gb_s) >= HEALTHY_SHARE:
            return promised_gb_s
        return None if self.is_disturbed else _rounded(self.read_gb_s / HEALTHY_SHARE)

    def pcie_gb_s(self, index: int, card: str) -> float | None:
        """What a card takes from the host; None where that was not measured, or beside a running server."""
        if self.is_disturbed or index >= len(self.cards) or self.cards[index][0] != card:
            return None
        return float(max(round(self.cards[index][1]), 1))


def of_this(here: Hardware, text: str, assumed: list[str]) -> Measured | None:
    """What was measured on this hardware; a file that can't be used is an assumption more."""
    if not text.strip():
        return None
    found = Measured.parse(text)
    if found and found.hardware.is_like(here):
        return found
    why = "is of other hardware" if found else "can't be read"
    assumed.append(f"{PATH}: {why}, not used; run moehost measure again")
    return None


def disk_gb_s(text: str) -> float | None:
    """What the models' disk was measured to read; None where measured.json says nothing of it."""
    try:
        return float(json.loads(text)["disk"]["read_gb_s"]) or None
    except (ValueError, KeyError, TypeError):
        return None


def _rounded(gb_s: float) -> float:
    return float(max(round(gb_s / STEP_GB_S) * STEP_GB_S, STEP_GB_S))


def promise(wanted: tuple[int, int] | None, sockets: int, filled: int, mt_s: int) -> Promise | None:
    """What the memory can do on paper.

    + wanted: channels of a socket and their MT/s; None for a processor that is not known
    + filled: channels that have a module, of all sockets; 0 where nobody knows
    + mt_s: what the modules run at; 0 where nobody knows
    """
    if filled and mt_s:
        channels = wanted[0] * sockets if wanted else filled
        filled = min(filled, channels)
        return Promise(_gb_s(filled, mt_s), filled, channels, mt_s, True)
    if wanted:
        channels = wanted[0] * sockets
        return Promise(_gb_s(channels, wanted[1]), channels, channels, wanted[1], False)
    return None


def _gb_s(channels: int, mt_s: int) -> float:
    return channels * mt_s * 8 / 1000


def memory_verdict(found: Measured, numa_nodes: int, sockets: int) -> str:
    """What the reading means, in one line."""
    promised = found.promised
    if promised is None:
        return f"memory: {found.read_gb_s:.0f} GB/s read; what was promised is not known for this processor"
    share = found.share(promised.gb_s)
    says = f"memory: {found.read_gb_s:.0f} GB/s read of {promised.gb_s:.0f} promised ({share:.0%})"
    if not promised.is_read:
        says += ", taking all channels as filled"
    return f"{says}: {_meaning(found, promised, share, numa_nodes > sockets)}"


def _meaning(found: Measured, promised: Promise, share: float, is_split: bool) -> str:
    if share > 1.05:
        return "more than the memory can do, so part of it came from the caches or the promise is wrong"
    lacking = promised.wanted - promised.channels
    if share >= HEALTHY_SHARE:
        well = "as good as it gets on this socket"
        return f"{well} with {promised.channels} of {promised.wanted} channels" if lacking else well
    if found.is_disturbed:
        return "a running llama-server may have taken the rest; stop it and measure again"
    if is_split:
        return "short; the sockets are split into NUMA nodes: set NPS1 in the BIOS and measure again"
    if not promised.is_read and share >= HALF_SHARE:
        filled = max(round(promised.channels * share / HEALTHY_SHARE), 1)
        return f"looks like {filled} of {promised.channels} channels, or slower modules; install dmidecode to know"
    if share >= HALF_SHARE:
        return "a little short; processors with few cores or caches do not fill all channels, else see moehost doctor"
    return "half or less: see that every channel has a module, at full speed (moehost doctor), and NPS1 in the BIOS"


def summary(data: dict[str, Any], numa_nodes: int, sockets: int) -> Sequence[str]:
    """What an owner is told of measured.json, a line each."""
    found = Measured.parse(json.dumps(data))
    if found is None:
        return ["memory: was not measured"]
    memory = data["memory"]
    lines = [
        memory_verdict(found, numa_nodes, sockets),
        f"memory: {found.triad_gb_s:.0f} GB/s triad; {memory['threads']} threads, three arrays of "
        f"{memory['array_mib']} MiB, pages {memory['policy']}",
    ]
    lines += [
        f"memory: node {each['node']} alone {each['read_gb_s']['best']:.0f} GB/s read"
        for each in memory.get("nodes", ())
    ]
    if disk := data.get("disk"):
        cache = "" if disk["is_direct"] else "; not a direct read, so part of it may be from the page cache"
        lines.append(f"disk: {disk['read_gb_s']:.2f} GB/s, {disk['read_mib']} MiB of {disk['path']}{cache}")
    else:
        lines.append("disk: there is no file to read yet; measure again once a model is there")
    lines += [
        f"card {index}: {gb_s:.1f} GB/s from the host ({card})" for index, (card, gb_s) in enumerate(found.cards)
    ]
    if "cards_refused" in data:
        lines.append(f"cards: were not measured: {data['cards_refused']}")
    return lines
