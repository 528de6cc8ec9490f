"""How a host was before it was tuned, so that each setting can be undone; kept on the node.

A value stays recorded until it has been put back; a word of the command line until no boot has it any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from moehost.topology import Topology
from moehost.tuning import RATIOS, Tuning

PATH = "/etc/moehost/tuning-before.json"


@dataclass(frozen=True)
class Before:
    """Values by path, and the words that the command line did not have."""

    values: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Before:
        """What the file says; nothing where there is none or it is not one of these."""
        try:
            data = json.loads(text)
            return cls({str(path): str(value) for path, value in data["values"].items()}, tuple(data["words"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()

    @property
    def text(self) -> str:
        """The file; empty when there is nothing to keep."""
        if not self.values and not self.words:
            return ""
        return json.dumps({"values": dict(self.values), "words": list(self.words)}, indent=2) + "\n"

    def recorded(self, tuning: Tuning, host: Topology) -> Before:
        """With what is about to be changed for the first time."""
        paths = [path for each in tuning.drifted(host) for path in (each.path, RATIOS.get(each.path, each.path))]
        new = {path: host.values[path] for path in paths if path in host.values and path not in self.values}
        words = [each for each in tuning.words if each not in (*self.words, *host.words)]
        return Before({**self.values, **new}, (*self.words, *words))

    def undone(self, tuning: Tuning) -> dict[str, str]:
        """Values to put back: of what is tuned no more."""
        kept = {path for each in tuning.knobs for path in (each.path, RATIOS.get(each.path, each.path))}
        return {path: value for path, value in self.values.items() if path not in kept}

    def stale_words(self, tuning: Tuning) -> list[str]:
        """Words that the command line should have no more."""
        return [each for each in self.words if each not in tuning.words]

    def kept(self, tuning: Tuning, host: Topology) -> Before:
        """Without what has been put back, and without words that are gone from this boot and the next."""
        gone = self.undone(tuning)
        values = {path: value for path, value in self.values.items() if path not in gone}
        stale = [each for each in self.stale_words(tuning) if each not in (*host.words, *host.boot_words)]
        return Before(values, tuple(each for each in self.words if each not in stale))


def to_write(values: Mapping[str, str], host: Topology) -> dict[str, str]:
    """Those of these values that the host does not have; of a limit in two units the one that is in use."""
    pairs = {*RATIOS, *RATIOS.values()}
    return {
        path: value
        for path, value in values.items()
        if path in host.values and host.values[path] != value and not (path in pairs and value == "0")
    }
