"""Sources of packages that a system did not come with, and what else on a node speaks of the same ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AptSource:
    """A source for apt, with a key of its own.

    + id: its name in the names of files
    + uri: address of the repository
    + suite: name of a suite, or a path that ends in `/`, as a flat repository has it
    + components: parts of the suite; a flat repository has none
    + key_url: address of the repository's key, armored or not
    + fingerprint: of that key, 40 digits without blanks
    + preferences: text for apt's preferences, which say what may come from there
    """

    id: str
    uri: str
    suite: str
    components: tuple[str, ...]
    key_url: str
    fingerprint: str
    preferences: str | None = None

    @property
    def path(self) -> str:
        """Where apt reads of it."""
        return f"/etc/apt/sources.list.d/moehost-{self.id}.sources"

    @property
    def keyring(self) -> str:
        """Where its key lies."""
        return f"/usr/share/keyrings/moehost-{self.id}.gpg"

    @property
    def preferences_path(self) -> str:
        """Where apt reads its preferences."""
        return f"/etc/apt/preferences.d/60-moehost-{self.id}"


def conflicts(source: AptSource, files: Mapping[str, str]) -> list[str]:
    """Those of these other files (path: text) that name the source with another key.

    With one of them apt reads no source at all. One without a key is none of them where apt reads it before ours,
    whose key it then takes: `sources.list` comes first, then the others by name.
    """
    return [
        path
        for path, text in files.items()
        if any(
            source.uri.rstrip("/") in (uri.rstrip("/") for uri in uris)
            and source.suite in suites
            and signed_by != source.keyring
            and (signed_by or ("sources.list.d/" in path and path > source.path))
            for uris, suites, signed_by in _entries(path, text)
        )
    ]


def key_of(uri: str, suite: str, files: Mapping[str, str]) -> str:
    """The key with which these files (path: text) name a suite, empty where they name none.

    Whatever else names that suite must have the same one: with another, or with none, apt reads no source at all.
    """
    for path, text in files.items():
        for uris, suites, signed_by in _entries(path, text):
            if uri.rstrip("/") in (each.rstrip("/") for each in uris) and suite in suites:
                return signed_by
    return ""


def _entries(path: str, text: str) -> Iterator[tuple[list[str], list[str], str]]:
    """Addresses, suites and key of each entry that is in use, in either of apt's two formats."""
    if not path.endswith(".sources"):
        for options, uri, suite in re.findall(
            r"^\s*deb(?:-src)?\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)", text, re.MULTILINE
        ):
            key = re.search(r"(?i)\bsigned-by=(\S+)", options)
            yield [uri], [suite], key[1] if key else ""
        return
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        found = re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        fields = {name.lower(): value.strip() for name, value in found}
        if fields.get("enabled", "yes").lower() not in ("no", "false", "off", "0"):
            yield fields.get("uris", "").split(), fields.get("suites", "").split(), fields.get("signed-by", "")
