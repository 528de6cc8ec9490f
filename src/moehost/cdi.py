"""NVIDIA's cards in containers: Podman, the container toolkit and the CDI specification, and whether they fit.

Sources: CurrentVersion of the CDI library in Podman's tags (what each can read; it refuses a later one, and unknown
fields); nvidia-container-toolkit's tags 1.17.8 to 1.20.0 (what it writes, its units and feature flags) and its issue
1860; NVIDIA's security bulletins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moehost.finding import DEPLOY, Finding, Level

# First Podman that reads specifications of a CDI version; it has no devices of CDI before.
CDI_OF_PODMAN = {
    (4, 1): (0, 4),
    (4, 3): (0, 5),
    (4, 7): (0, 6),
    (5, 1): (0, 7),
    (5, 2): (0, 8),
    (5, 5): (1, 0),
}
# What the toolkit writes: since 1.19 the groups of device nodes are in it, unless a flag says no.
PLAIN, WITH_GROUPS = (0, 5), (0, 7)
FIRST_WITH_GROUPS = (1, 19)
FLAGS, NO_GROUPS = "NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS", "no-additional-gids-for-device-nodes"
OUTPUT = "NVIDIA_CTK_CDI_OUTPUT_FILE_PATH"
# First toolkit without each hole; the first with a unit that keeps the specification fresh.
FIXED = {(1, 16, 2): "CVE-2024-0132", (1, 17, 4): "CVE-2025-23359", (1, 17, 8): "CVE-2025-23266 and CVE-2025-23267"}
FIRST_REFRESH = (1, 18)

KIND = "nvidia.com/gpu"
# Where `nvidia-ctk cdi generate` was told to write before there was a unit for it.
BY_HAND = ("/etc/cdi/nvidia.yaml", "/etc/cdi/nvidia.json")
DEFAULT_OUTPUT = "/var/run/cdi/nvidia.yaml"
REFRESH = "systemctl restart nvidia-cdi-refresh.service"
BASE = "nvidia-container-toolkit-base"
PACKAGES = (BASE, "nvidia-container-toolkit", "libnvidia-container-tools", "libnvidia-container1")


class CdiError(ValueError):
    """Why containers can't have a node's cards: one line that says what, where and how to mend it."""


@dataclass(frozen=True)
class Specification:
    """One file of CDI: its path, version and kind, names of its devices, versions of the driver's libraries in it."""

    path: str
    version: str
    kind: str
    devices: tuple[str, ...]
    drivers: tuple[str, ...]


@dataclass(frozen=True)
class Toolkit:
    """What a node has to bring its cards into containers; versions are empty where a thing is absent.

    + cards: how many NVIDIA cards are on the PCI bus
    + podman: version of Podman
    + packages: those of the toolkit that are installed, and their versions
    + ctk: version of nvidia-ctk, however it came
    + env: text of the refresh unit's environment file
    + module: version of the driver's module that is loaded
    + specifications: all that there are, of any kind
    """

    cards: int
    podman: str
    packages: Mapping[str, str]
    ctk: str
    env: str
    module: str
    specifications: tuple[Specification, ...]

    @property
    def output(self) -> str:
        """Where the refresh unit writes."""
        found = re.findall(rf"^{OUTPUT}=[\"']?([^\"'\s]+)", self.env, re.MULTILINE)
        return found[-1] if found else DEFAULT_OUTPUT

    @property
    def of_cards(self) -> tuple[Specification, ...]:
        """The specifications of the cards, those that count more first: a device in /var/run hides one in /etc."""
        ours = [each for each in self.specifications if each.kind == KIND]
        return tuple(sorted(ours, key=lambda each: each.path.startswith("/etc/")))

    @property
    def strays(self) -> tuple[Specification, ...]:
        """Specifications that were made by hand, beside the one that is kept fresh."""
        return tuple(each for each in self.of_cards if each.path in BY_HAND and each.path != self.output)

    @property
    def rivals(self) -> tuple[Specification, ...]:
        """Specifications of the cards that somebody else makes."""
        return tuple(each for each in self.of_cards if each.path not in (*BY_HAND, self.output))


def parse(texts: Mapping[str, str]) -> Toolkit:
    """What the fact `roles.nvidia_container_toolkit.facts.ContainerToolkit` reads, by its keys."""
    installed = (line.split() for line in texts["packages"].splitlines())
    return Toolkit(
        cards=len(texts["cards"].split()),
        podman=_number(texts["podman"]),
        packages={words[1]: words[2] for words in installed if words[0] == "installed"},
        ctk=_number(texts["ctk"]),
        env=texts["env"],
        module=texts["module"].strip(),
        specifications=tuple(map(_specification, re.findall(r"^=(.*\n(?:[^=].*\n)*)", texts["specs"], re.MULTILINE))),
    )


def _number(text: str) -> str:
    """The first version number in a text."""
    found = re.search(r"\d+(?:[.]\d+)+", text)
    return found[0] if found else ""


def _specification(text: str) -> Specification:
    path, _, rest = text.partition("\n")
    fields = re.findall(r"^(cdiVersion|kind|name)\W+(.*)$", rest, re.MULTILINE)
    return Specification(
        path=path,
        version=next((value.removeprefix("v") for key, value in fields if key == "cdiVersion"), ""),
        kind=next((value for key, value in fields if key == "kind"), ""),
        devices=tuple(value for key, value in fields if key == "name"),
        drivers=tuple(sorted(set(re.findall(r"^lib\S+[.]so[.](.*)$", rest, re.MULTILINE)))),
    )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of e.g. `1.20.0-1` up to the first sign that is neither digit nor dot."""
    return tuple(int(each) for each in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0]))


def readable(podman: str) -> tuple[int, ...]:
    """The latest CDI version that a Podman reads; (0, 0) where it knows no CDI."""
    fits = [cdi for first, cdi in CDI_OF_PODMAN.items() if numbers(podman) >= first]
    return max(fits, default=(0, 0))


def holes(toolkit: str) -> list[str]:
    """Names of the known holes of a version of the toolkit."""
    return [names for fixed, names in FIXED.items() if numbers(toolkit) < fixed]


def version_refusal(toolkit: str) -> str | None:
    """Why a version of the toolkit is not to be installed, or None."""
    if known := holes(toolkit):
        return f"{toolkit!r} has {known[-1]}: an image can take over the host; write 1.20.0-1, or 1.18.0-1 or later"
    if numbers(toolkit) < FIRST_REFRESH:
        return (
            f"{toolkit!r} has no nvidia-cdi-refresh.service, which keeps the CDI specification fresh; "
            "write 1.20.0-1, or 1.18.0-1 or later"
        )
    return None


def needs_flag(podman: str, toolkit: str) -> bool:
    """Whether the toolkit must be told to leave out the groups of device nodes, which a Podman can't read.

    Raises CdiError where no flag helps.
    """
    can = readable(podman)
    if can < PLAIN:
        reads = f"reads CDI up to {_dotted(can)}, and NVIDIA's toolkit writes 0.5.0" if any(can) else "knows no CDI"
        raise CdiError(
            f"Podman {podman or '(none)'} {reads}: containers can't have the cards; install Podman 4.3 or later, or "
            "let the services run with runtime: 'native'"
        )
    return numbers(toolkit) >= FIRST_WITH_GROUPS and can < WITH_GROUPS


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, (*version, 0)[:3]))


def refresh_env(text: str, needs_flag: bool) -> str:
    """The refresh unit's environment file with the flag, or without it; what else is in it stays."""
    lines = text.splitlines()
    at = [n for n, line in enumerate(lines) if line.startswith(f"{FLAGS}=")]
    # Of several assignments the last one counts.
    value = lines[at[-1]].partition("=")[2].strip("\"' ") if at else ""
    flags = [each for each in value.split(",") if each]
    if (NO_GROUPS in flags) == needs_flag:
        return text
    flags = [*flags, NO_GROUPS] if needs_flag else [each for each in flags if each != NO_GROUPS]
    new = [f"{FLAGS}={','.join(flags)}"] if flags else []
    kept = [line for n, line in enumerate(lines) if n not in at]
    return "".join(f"{line}\n" for line in [*kept, *new])


def findings(toolkit: Toolkit) -> list[Finding]:
    """What there is to say of a node's cards in containers; nothing without a card."""
    if not toolkit.cards:
        return []
    return [_of_podman(toolkit), *_of_packages(toolkit), of_specification(toolkit), *_of_others(toolkit)]


def _of_podman(toolkit: Toolkit) -> Finding:
    if not toolkit.podman:
        return Finding("podman", "error", "Podman is not installed", "apt-get install podman")
    try:
        needs_flag(toolkit.podman, toolkit.ctk)
    except CdiError as error:
        says, _, fix = str(error).partition("; ")
        return Finding("podman", "error", says, fix)
    return Finding("podman", "ok", f"Podman {toolkit.podman} reads CDI up to {_dotted(readable(toolkit.podman))}")


def _of_packages(toolkit: Toolkit) -> list[Finding]:
    if not toolkit.ctk:
        return [Finding("cdi", "error", "NVIDIA's container toolkit is not installed", DEPLOY)]
    if known := holes(toolkit.ctk):
        says = f"NVIDIA's container toolkit {toolkit.ctk} has {', '.join(known)}: an image can take over the host"
        return [Finding("cdi", "warning", says, DEPLOY)]
    if numbers(toolkit.ctk) < FIRST_REFRESH:
        says = f"NVIDIA's container toolkit {toolkit.ctk} does not keep the CDI specification fresh"
        return [Finding("cdi", "warning", says, DEPLOY)]
    return [Finding("cdi", "ok", f"NVIDIA's container toolkit {toolkit.ctk}")]


def of_specification(toolkit: Toolkit) -> Finding:
    """Whether the specification that Podman takes is one that it can read, of the driver that is loaded."""
    if not toolkit.module:
        return Finding("cdi", "error", "the driver's module is not loaded, so no CDI fits", "modprobe nvidia")
    if not toolkit.of_cards:
        return Finding("cdi", "error", f"there is no CDI specification of {KIND}", REFRESH)
    found = toolkit.of_cards[0]
    can = readable(toolkit.podman)
    if not found.version or (toolkit.podman and numbers(found.version)[:2] > can):
        has = found.version or "no version"
        says = f"{found.path} is of CDI {has}, and Podman {toolkit.podman} reads up to {_dotted(can)}"
        return Finding("cdi", "error", says, DEPLOY)
    if found.drivers != (toolkit.module,):
        has = ", ".join(found.drivers) or "none"
        says = f"{found.path} is of driver {has}, and the module that is loaded is {toolkit.module}"
        return Finding("cdi", "error", says, REFRESH)
    if "all" not in found.devices:
        says = f"{found.path} has no device {KIND}=all"
        return Finding("cdi", "error", says, f"take NO_ALL_DEVICE out of nvidia-cdi-refresh.env, then {REFRESH}")
    return Finding("cdi", "ok", f"{found.path}: CDI {found.version}, driver {toolkit.module}")


def _of_others(toolkit: Toolkit) -> list[Finding]:
    """Specifications beside the one that counts."""
    found = []
    for each in toolkit.of_cards[1:]:
        here = toolkit.of_cards[0].path
        # Of two in one folder Podman takes neither.
        level: Level = "error" if here.rpartition("/")[0] == each.path.rpartition("/")[0] else "warning"
        says = f"{each.path} describes the cards, too, beside {here}, and nobody keeps it fresh"
        found.append(Finding("cdi", level, says, f"mv {each.path} {each.path}.off"))
    return found
