"""Whether a machine can become a node: what it answered, read and judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moehost import nvidia_repository, os_release
from moehost.finding import Finding
from moehost.hardware import HardwareError, Node, node_from_facts

HARDWARE = ("lscpu", "meminfo", "nvidia_smi", "has_memory", "l3_ids")
SYSTEMS = "Ubuntu 24.04, Debian 12 and Debian 13"
# A 400B model of four bits a weight, and room for the next one to be fetched beside it.
ROOM_GIB = 250


def hardware(texts: Mapping[str, str]) -> Node:
    """The machine for the planner. Raises HardwareError naming the text that can't be read."""
    return node_from_facts(**{key: texts[key] for key in HARDWARE})


def examine(texts: Mapping[str, str], user: str, models_dir: str) -> Iterator[Finding]:
    """What the fact `roles.probe.facts.Probe` said, as findings: an error is what a deploy can't do without."""
    system = os_release.fields(texts["os_release"])
    called = system.get("PRETTY_NAME", "an unknown system")
    if nvidia_repository.distribution(system):
        yield Finding("system", "ok", called)
    else:
        yield Finding(
            "system", "error", f"{called} is not supported", f"install one of {SYSTEMS} (moehost autoinstall)"
        )
    if texts["arch"].strip() != "x86_64":
        yield Finding(
            "processor", "error", f"{texts['arch'].strip() or 'unknown'} is not x86_64", "take an x86_64 machine"
        )
    yield _rights(texts, user)
    if texts["python3"].strip():
        yield Finding("python3", "ok", texts["python3"].strip())
    else:
        yield Finding("python3", "error", "is not there", "apt-get install python3")
    try:
        machine = hardware(texts)
        memory_gib, cpu = machine.memory_mib / 1024, machine.cpu
        yield Finding("hardware", "ok", f"{cpu.model}, {cpu.cores} cores, {memory_gib:.0f} GiB of memory")
    except HardwareError as error:
        yield Finding("hardware", "error", str(error), "see what its own tools say")
    yield _cards(texts)
    yield _disk(texts["disks"], models_dir)


def _rights(texts: Mapping[str, str], user: str) -> Finding:
    if texts["uid"].strip() == "0":
        return Finding("rights", "ok", "root")
    if texts["sudo"].strip() == "0":
        return Finding("rights", "ok", f"{user}, sudo without a password")
    fix = f"echo '{user} ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/{user}, as root; or --user root"
    return Finding("rights", "error", f"{user} has no sudo without a password", fix)


def _cards(texts: Mapping[str, str]) -> Finding:
    on_bus, seen = len(texts["cards"].split()), len(texts["nvidia_smi"].splitlines())
    if not on_bus:
        return Finding("cards", "ok", "none of NVIDIA on the bus; models run from memory")
    if not seen:
        return Finding("cards", "ok", f"{on_bus} of NVIDIA; no driver yet, the deploy installs it")
    return Finding("cards", "ok", f"{on_bus} of NVIDIA, the driver sees {seen}")


def _disk(df: str, models_dir: str) -> Finding:
    """What is free where the models will lie: on the deepest file system above the folder."""
    rows = re.findall(r"^\S+ +\d+ +\d+ +(\d+) +\d+% (/.*)$", df, re.MULTILINE)
    above = {there: int(kib) for kib, there in rows if f"{models_dir}/".startswith(f"{there.rstrip('/')}/")}
    if not above:
        return Finding("disk", "error", f"no file system for {models_dir}: {df[:60]!r}", "see what df says")
    there = max(above, key=len)
    free_gib = above[there] / (1 << 20)
    says = f"{free_gib:.0f} GiB free for {models_dir}, on {there}"
    if free_gib >= ROOM_GIB:
        return Finding("disk", "ok", says)
    return Finding(
        "disk", "warning", says, f"mount a bigger disk on {models_dir}; a 400B model takes about {ROOM_GIB} GiB"
    )
