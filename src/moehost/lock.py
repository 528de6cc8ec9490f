"""What a node is made of, pinned: one text to compare with, and what has drifted from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moehost import os_release

# By section and name: a version, a checksum, or whatever tells one from another.
Lock = dict[str, dict[str, str]]


class LockError(ValueError):
    """A file that is no lock; one line that says where, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not as it was locked; None where it was not there, or is no more."""

    section: str
    name: str
    locked: str | None
    found: str | None

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.section} {self.name}: {_short(self.locked)} -> {_short(self.found)}"


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"{value[:12]}..." if len(value) in (64, 71) and " " not in value else value


def of_node(texts: Mapping[str, str]) -> Lock:
    """The lock of a node, from the texts of the fact `Stack`; a section without anything in it is left out."""
    build = _objects(texts["build"])
    engine = {"release": texts["release"].strip()}
    engine |= {key: str(each[key]) for each in build for key in ("commit", "package", "cuda") if each.get(key)}
    engine |= {f"program {name}": digest for digest, name in _pairs(texts["programs"])}
    found: Lock = {
        "system": {
            "os": os_release.fields(texts["os_release"]).get("PRETTY_NAME", ""),
            "kernel": texts["kernel"].strip(),
            "command line": _own_words(texts["words"]),
            "driver": ", ".join(filter(None, texts["driver"].splitlines())),
        },
        "package": dict(_packages(texts["packages"])),
        "engine": engine,
        "image": {name: digest for digest, name in _pairs(texts["images"])},
        "model": {
            f"{each['model']}/{file['name']}": str(file["sha256"])
            for each in _objects(texts["models"])
            for file in each["files"]
        },
        "file": {name: digest for digest, name in _pairs(texts["files"])},
    }
    known = {section: {name: value for name, value in things.items() if value} for section, things in found.items()}
    return {section: dict(sorted(things.items())) for section, things in known.items() if things}


def to_text(lock: Lock) -> str:
    """The text of a file, made to be kept under version control: the same node gives the same text."""
    return json.dumps(lock, indent=2) + "\n"


def parse(text: str, where: str) -> Lock:
    """The inverse of `to_text`; raises LockError."""
    try:
        data = json.loads(text)
        return {
            str(section): {str(name): str(value) for name, value in things.items()}
            for section, things in data.items()
        }
    except (ValueError, AttributeError) as error:
        raise LockError(f"{where}: is no lock ({error}); write one by `moehost lock`") from None


def drifts(locked: Lock, found: Lock) -> list[Drift]:
    """What differs, in the order of the sections."""
    sections = dict.fromkeys([*locked, *found])
    return [
        Drift(section, name, before.get(name), after.get(name))
        for section in sections
        for before, after in [(locked.get(section, {}), found.get(section, {}))]
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _own_words(line: str) -> str:
    """The kernel's words, without those that name its file and disk."""
    return " ".join(word for word in line.split() if not word.startswith(("BOOT_IMAGE=", "root=", "initrd=")))


def _packages(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        status, _, rest = line.partition(" ")
        name, _, version = rest.partition(" ")
        if status == "installed":
            yield name, version


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Lines of a checksum and a name."""
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip():
            yield digest, name.strip().removeprefix("*")


def _objects(text: str) -> list[dict[str, Any]]:
    """JSON objects that follow each other; what is cut off is left out."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            each, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append(each)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found
