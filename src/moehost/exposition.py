"""Prometheus' text format: written for a node exporter's textfile collector, and read from servers.

Standard library only, as it runs on the node. Source: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)(?:\s+-?\d+)?\s*$")


@dataclass(frozen=True)
class Kind:
    """What a name means: `type` (`gauge` or `counter`), and a sentence of `help`."""

    type: str
    help: str


@dataclass(frozen=True)
class Sample:
    """One figure."""

    metric: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def render(samples: Iterable[Sample], kinds: Mapping[str, Kind]) -> str:
    """The samples in the order of `kinds`, each name once with its HELP and TYPE, if it has a sample.

    Raises KeyError for a name that `kinds` does not have.
    """
    groups: dict[str, list[Sample]] = {metric: [] for metric in kinds}
    for sample in samples:
        groups[sample.metric].append(sample)
    return "".join(
        line for metric, those in groups.items() if those for line in _family(metric, kinds[metric], those)
    )


def _family(metric: str, kind: Kind, samples: list[Sample]) -> Iterator[str]:
    help_text = kind.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {metric} {help_text}\n# TYPE {metric} {kind.type}\n"
    for sample in samples:
        pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels.items())
        yield f"{metric}{f'{{{pairs}}}' if pairs else ''} {_number(sample.value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    # Numbers of bytes stay whole: no exponent, no fraction.
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def parse(text: str) -> dict[str, float]:
    """Value of each name; labels are not looked at, and what is no finite number is left out."""
    found = {}
    for line in text.splitlines():
        if sample := SAMPLE.match(line):
            try:
                value = float(sample[2])
            except ValueError:
                continue
            if math.isfinite(value):
                found[sample[1]] = value
    return found
