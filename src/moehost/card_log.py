"""What `nvidia-smi -q -x` says of cards; its names have changed over the driver's branches, and all are taken.

Standard library only, as it runs on the node.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True)
class Card:
    """A card in the words of nvidia-smi; what it does not say is empty."""

    index: int
    bus: str
    tree: ElementTree.Element

    @property
    def label(self) -> str:
        """How findings name it."""
        return f"CUDA{self.index} ({self.text('product_name').removeprefix('NVIDIA ')}, {self.bus})"

    def text(self, *paths: str) -> str:
        """The text of the first of these elements that is there and says something."""
        texts = ((self.tree.findtext(path) or "").strip() for path in paths)
        return next((text for text in texts if text not in ("", "N/A", "[N/A]")), "")

    def number(self, *paths: str) -> float | None:
        """The number that a text begins with, e.g. of `600.00 W`."""
        digits = re.match(r"-?\d+([.]\d+)?", self.text(*paths))
        return float(digits[0]) if digits else None

    def power(self, *keys: str) -> float | None:
        """The first of these readings of power that is there, W."""
        return self.number(
            *(f"{readings}/{key}" for key in keys for readings in ("gpu_power_readings", "power_readings"))
        )

    @property
    def power_limit_w(self) -> float | None:
        """The power limit that is in force."""
        return self.power("current_power_limit", "enforced_power_limit", "power_limit")

    def errors(self, scope: str, kind: str) -> int:
        """All errors of a kind (`correctable`, `uncorrectable`) that are counted in a scope (`volatile` ...)."""
        counts = [
            each
            for each in self.tree.findall(f"ecc_errors/{scope}/*")
            if re.fullmatch(rf"[sd]ram_{kind}\w*", each.tag)
        ]
        return sum(int(each.text or 0) for each in counts if (each.text or "").isdecimal())

    def is_slowed(self, reason: str) -> bool:
        """Whether the card runs with lower clocks for a reason, e.g. `hw_thermal_slowdown`."""
        names = ("clocks_event_reasons/clocks_event_reason", "clocks_throttle_reasons/clocks_throttle_reason")
        return self.text(*(f"{name}_{reason}" for name in names)) == "Active"


def parse(text: str) -> list[Card]:
    """The cards in the driver's order, which is that of the bus. Raises ValueError where the text is cut off."""
    if "<gpu " not in text:
        return []
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (a node's own nvidia-smi wrote it)
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi -q -x can't be read: {error}") from None
    return [Card(index, each.get("id", "")[-12:].lower(), each) for index, each in enumerate(root.iter("gpu"))]
