"""The system under the services: kernel, clock, governor, a reboot that is owed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from moehost.finding import DEPLOY, Finding
from moehost.settings import Node

DAY_S = 86400
# A reboot may wait for a quiet weekend, and for another one.
REBOOT_SOON_S = 14 * DAY_S


def container(texts: Mapping[str, str]) -> str:
    """The kind of container that the node is, empty for a machine."""
    kind = texts["container"].strip()
    return "" if kind == "none" else kind


def findings(texts: Mapping[str, str]) -> Iterator[Finding]:
    """What holds for every node, containers too."""
    kind = container(texts)
    running = f"Linux {texts['kernel'].strip()}, up {ago(uptime_s(texts))}"
    yield Finding("system", "ok", f"{running}; a container ({kind})" if kind else running)
    if texts["user"].strip() != "0":
        says = "asked without root: the kernel's log, journals and memory modules may not have been seen"
        yield Finding("system", "warning", says, "ssh_user: root or _sudo: True for the host in the inventory")
    yield reboot(texts)


def kernel_findings(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """What holds where the kernel is the node's own."""
    yield from clock(texts)
    yield from governor(texts, node)


def reboot(texts: Mapping[str, str]) -> Finding:
    """Whether packages wait for a reboot, which ones, and how long."""
    since, *packages = texts["reboot"].split() or ["0"]
    if since == "0":
        return Finding("reboot", "ok", "no package waits for a reboot")
    waiting_s = now_s(texts) - int(since)
    for_what = f" for {', '.join(packages)}" if packages else ""
    late = "; that is long" if waiting_s > REBOOT_SOON_S else ""
    return Finding(
        "reboot", "warning", f"a reboot is owed{for_what}, since {ago(waiting_s)}{late}", "systemctl reboot"
    )


def clock(texts: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the clock is set by others; TLS and journals depend on it."""
    synchronised = texts["clock"].strip()
    if synchronised == "yes":
        yield Finding("clock", "ok", "the clock is synchronised")
    elif synchronised == "no":
        yield Finding(
            "clock",
            "warning",
            "the clock is not synchronised",
            "apt-get install -y systemd-timesyncd && timedatectl set-ntp true",
        )


def governor(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """Whether the processor's frequency waits to be asked for."""
    counts = Counter(texts["governors"].split())
    slow = {name: number for name, number in counts.items() if name != "performance"}
    if slow:
        named = ", ".join(f"{name} on {number} of {counts.total()} CPUs" for name, number in slow.items())
        yield Finding(
            "governor",
            "warning",
            f"the frequency governor is {named}; decode waits for the clock",
            DEPLOY
            if node.tuning.cpu == "auto"
            else "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    elif counts:
        yield Finding("governor", "ok", f"the frequency governor is performance on {counts.total()} CPUs")


def uptime_s(texts: Mapping[str, str]) -> int:
    """Seconds since the boot."""
    return int(float((texts["uptime"].split() or ["0"])[0]))


def now_s(texts: Mapping[str, str]) -> int:
    """The node's own time, in seconds of Unix."""
    return int(texts["now"].strip() or 0)


def ago(seconds: int) -> str:
    """A span of time as a person says it."""
    for unit, length_s in (("days", DAY_S), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s} {unit}"
    return f"{max(seconds, 0)} seconds"
