"""What several roles ask a node."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost import measured, os_release
from moehost.hardware import NVIDIA_SMI_QUERY

# Display controllers (class 03) of NVIDIA on the bus, a path for each, with or without a driver.
CARDS = "grep -l 0x10de $(grep -l ^0x03 /sys/bus/pci/devices/*/class | sed s/class$/vendor/) /dev/null"

# The modules of memory, without their serial numbers; root only.
MEMORY_MODULES = (
    "dmidecode --type memory | grep -E "
    "'^Memory Device|^[[:space:]]*(Size|Locator|Bank Locator|Speed|Configured (Memory|Clock) Speed):'"
)


def from_json(text: str, kind: type = dict) -> Any:
    """What a node wrote, None where it is cut off or something else: a fact that raises ends the run of every host.

    + kind: what it should be, dict or list
    """
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, kind) else None


class DpkgAudit(FactBase[list[str]]):
    """What dpkg left half done: the lines of `dpkg --audit`, none on a healthy node."""

    default = list

    def command(self) -> str:
        return "! command -v dpkg >/dev/null || dpkg --audit"

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line.strip()]


class MissingPackages(FactBase[list[str]]):
    """Those of the wanted packages that are not installed.

    + packages: names of packages
    """

    default = list

    def command(self, packages: list[str]) -> StringCommand:
        # One program for all of them; it prints nothing for a package it never heard of.
        return StringCommand(
            "have=$(dpkg-query -W -f ' ${db:Status-Status}:${Package} '",
            *(QuoteString(package) for package in packages), "2>/dev/null); for package in",
            *(QuoteString(package) for package in packages), "; do",
            "case $have in *\" installed:$package \"*) ;; *) echo \"$package\" ;; esac; done",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return output


class OsRelease(FactBase[dict[str, str]]):
    """The fields of `/etc/os-release`."""

    default = dict

    def command(self) -> str:
        return "cat /etc/os-release"

    def process(self, output: list[str]) -> dict[str, str]:
        return os_release.fields("\n".join(output))


class FileStates(FactBase[dict[str, list[str]]]):
    """SHA-256, permissions and `owner:group` of each of the files that is there.

    + paths: paths of files
    """

    default = dict

    def command(self, paths: list[str]) -> StringCommand:
        # Two programs for all files: some for each of them would take longer than everything else that is asked.
        return StringCommand(
            "{ set --; for path in", *(QuoteString(path) for path in paths), "; do",
            "if test -f \"$path\"; then set -- \"$@\" \"$path\"; fi; done; if test $# != 0; then",
            "stat -c '%a %U:%G %n' \"$@\" |",
            "{ sha256sum \"$@\" | cut -c1-64 | paste -d ' ' - /dev/fd/3; } 3<&0; fi; }",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, list[str]]:
        fields = (line.split(" ", 3) for line in output)
        return {path: state for *state, path in fields}


def units(text: str) -> dict[str, dict[str, str]]:
    """Properties of units by their name, of what `systemctl show` says of several; `Id` must be among them."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n"))
    return {block["Id"]: block for block in blocks if "Id" in block}


class Texts:
    """What a fact with several commands has in common: one round trip, and a text for each.

    `commands`: key of the text, and the command that prints it; what a machine lacks is empty.
    """

    commands: ClassVar[dict[str, str]]

    def default(self) -> dict[str, str]:
        return dict.fromkeys(self.commands, "")

    def command(self) -> str:
        asked = (f"echo '=== {key}'; {command} 2>/dev/null" for key, command in self.commands.items())
        return "; ".join([*asked, "true"])

    def process(self, output: list[str]) -> dict[str, str]:
        texts, key = self.default(), ""
        for line in output:
            if line.startswith("=== ") and line.removeprefix("=== ") in texts:
                key = line.removeprefix("=== ")
            elif key:  # what comes before the first key is some login script's
                texts[key] += f"{line}\n"
        return texts


class PathsThere(FactBase[list[str]]):
    """Which of these are there: paths, and accounts by their names.

    + paths: paths of files
    + account: name of an account
    """

    default = list

    def command(self, paths: list[str], account: str) -> StringCommand:
        return StringCommand(
            "getent passwd", QuoteString(account), "| cut -d: -f1;",
            "ls -d", *(QuoteString(path) for path in paths), "2>/dev/null || true",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return output


def together(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The commands of several such facts for one, with keys `<part>.<key>`."""
    # Each in a shell of its own: one that ends early does not end the others.
    return {f"{part}.{key}": f"( {text} )" for part, those in parts.items() for key, text in those.items()}


class SourceState(FactBase[dict[str, Any]]):
    """What a node has of a source for apt.

    `files`: as FileStates says it; `keys`: fingerprints of the primary keys in the keyring, none without gpg;
    `naming`: text of each of apt's files that names the address.

    + keyring: path of the keyring
    + paths: paths of the other files
    + uri: address of the source
    """

    @staticmethod
    def default() -> dict[str, Any]:
        return {"files": {}, "keys": [], "naming": {}}

    def command(self, keyring: str, paths: list[str], uri: str) -> StringCommand:
        return StringCommand(
            FileStates().command(paths=[keyring, *paths]), "| sed 's/^/file /';",
            # Leaves nothing behind in a home; the fingerprint after a `sub` is a subkey's.
            "gpg --batch --no-keyring --trust-model always --show-keys --with-colons", QuoteString(keyring),
            "2>/dev/null | sed -n '/^pub:/,/^fpr:/s/^fpr:*\\(.*\\):$/key \\1/p';",
            "grep -lsF", QuoteString(uri), "/etc/apt/sources.list /etc/apt/sources.list.d/*.list",
            "/etc/apt/sources.list.d/*.sources | while read -r path; do",
            "echo \"naming $path\"; sed 's/^/text /' \"$path\"; done; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        found, path, state = self.default(), "", FileStates()
        for line in output:
            kind, _, value = line.partition(" ")
            if kind == "file":
                found["files"] |= state.process([value])
            elif kind == "key":
                found["keys"].append(value)
            elif kind == "naming":
                path, found["naming"][value] = value, ""
            else:
                found["naming"][path] += f"{value}\n"
        return found


class Machine(Texts, FactBase[dict[str, str]]):
    """What a machine says of its processor, memory and cards, as text for `moehost.hardware.node_from_facts`."""

    commands = {
        "lscpu": "LC_ALL=C lscpu -J",
        "meminfo": "grep -E '^(MemTotal|MemAvailable|HugePages_Total|Hugepagesize):' /proc/meminfo",
        "nvidia_smi": f"nvidia-smi --query-gpu={NVIDIA_SMI_QUERY} --format=csv,noheader,nounits",
        "has_memory": "cat /sys/devices/system/node/has_memory",
        "l3_ids": "cat /sys/devices/system/cpu/cpu*/cache/index3/id",
        "measured": f"cat {measured.PATH}",
    }
