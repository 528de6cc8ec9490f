"""Whether the host's tuning is in effect, by what decides over it in a deploy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moehost.finding import DEPLOY, Finding
from moehost.hardware import HardwareError
from moehost.huge_page_pools import lacking, of_words
from moehost.settings import Node
from moehost.topology import THP, parse
from moehost.tuning import Knob, tuning
from moehost.tuning_before import Before


def findings(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """What there is to say of the tuning, by the texts of the fact `host_tuning.facts.Topology`."""
    try:
        host = parse(texts, node.models_dir)
    except HardwareError:
        return  # said of the memory
    goal = tuning(node.tuning, host, Before.parse(texts["before"]).values)
    areas: dict[str, list[Knob]] = {}
    for knob in goal.drifted(host):
        is_never = knob.path == f"{THP}/enabled" and host.values[knob.path] == "never"
        # Both have a finding of their own.
        if not is_never and not knob.path.endswith("/scaling_governor"):
            areas.setdefault(knob.area, []).append(knob)
    for area, knobs in areas.items():
        first = knobs[0]
        more = f", and {len(knobs) - 1} more" if len(knobs) > 1 else ""
        says = f"tuning.{area} is not in effect: {first.path} is {host.values[first.path]}, not {first.value}{more}"
        yield Finding("tuning", "warning", says, DEPLOY)
    absent = [each for each in host.own_words if each not in host.words]
    if absent:
        says = f"the kernel's command line lacks {' '.join(absent)}, which the next boot brings"
        yield Finding("tuning", "warning", says, "systemctl reboot")
    elif pools := of_words(host.own_words, host.memory_mib):
        for line in lacking(pools, host):
            yield Finding("tuning", "warning", line, "systemctl reboot (memory is whole then)")
    yield from (each for each in goal.warnings if each.area != "numa")  # said of the memory
    if goal.knobs and not areas:
        yield Finding("tuning", "ok", f"{len(goal.knobs)} values of the kernel's are as tuned")
