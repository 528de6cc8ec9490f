"""Keys: those of a service and those of a gateway's users, as files have them and as people are told of them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LEAST_LENGTH = 16
# What RFC 6750 lets a bearer token consist of; nothing in it means anything to a header, a shell or a Caddyfile.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,38}")
NAME_RULE = "use lower-case letters, digits and ._-, at most 39, with a letter or a digit first"


class KeysError(ValueError):
    """Keys that can't be used; `lines` has one line for each mistake."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class UserKey:
    """A user's key, without the key.

    + created: day and time, `-` where nobody noted it
    + sha256: the first characters of its digest
    """

    name: str
    created: str
    sha256: str


def new_key() -> str:
    """A key of 256 random bits."""
    return secrets.token_urlsafe(32)


def doubt(key: str) -> str | None:
    """Why a text is no key, or None; the text itself is never said."""
    if re.search(r"\s", key):
        return "has blanks in it; write one key per line"
    if len(key) < LEAST_LENGTH:
        return f"has {len(key)} characters; a key needs {LEAST_LENGTH} at least, e.g. of `openssl rand -hex 32`"
    if not TOKEN.fullmatch(key):
        return "has other characters than letters, digits and -._~+/=, which no bearer token may have"
    return None


def service_keys(text: str, where: str) -> str:
    """
    The keys of an owner's file for a service, one per line, without comments, blank lines and trailing blanks.

    An engine takes every line for a key, a comment as well. Raises KeysError.

    + where: what a mistake's line begins with
    """
    found = list(_lines(text))
    mistakes = [f"{where}: line {number} {why}" for number, key in found if (why := doubt(key))]
    if not found:
        mistakes = [f"{where}: has no key in it; write one per line, e.g. of `openssl rand -hex 32`"]
    if mistakes:
        raise KeysError(mistakes)
    return "".join(f"{key}\n" for key in dict.fromkeys(key for _, key in found))


def user_keys(text: str, where: str, path: str) -> str:
    """
    An owner's file of user keys as the node keeps it: `NAME KEY -` a line. Raises KeysError.

    + where: what a mistake's line begins with
    + path: of the file
    """
    mistakes, users = [], dict[str, str]()
    for number, line in _lines(text):
        name, _, key = line.partition(" ")
        why = None
        if not key.strip():
            why = "is no `NAME KEY`"
        elif not NAME.fullmatch(name):
            why = f"names {name!r}: {NAME_RULE}"
        elif name in users:
            why = f"names {name!r} a second time"
        elif key.strip() in users.values():
            why = "has the key of another user"
        else:
            why = doubt(key.strip())
        if why:
            mistakes.append(f"{where}: {path}:{number} {why}")
        users.setdefault(name, key.strip())
    if mistakes:
        raise KeysError(mistakes)
    return "".join(f"{name} {key} -\n" for name, key in users.items())


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    for number, line in enumerate(text.splitlines(), start=1):
        if (said := line.strip()) and not said.startswith("#"):
            yield number, said


def listed(text: str) -> list[UserKey]:
    """The keys that a node lists: `NAME CREATED SHA256` a line."""
    fields = (line.split() for line in text.splitlines())
    return [UserKey(*each) for each in fields if len(each) == 3]


def why_not_added(name: str, there: Iterable[UserKey]) -> str | None:
    """Why a user can't get a key under this name, or None."""
    if not NAME.fullmatch(name):
        return f"{name!r}: {NAME_RULE}"
    if any(each.name == name for each in there):
        return f"{name!r} has a key; to change it, add another name, hand that key out, then revoke {name!r}"
    return None


def why_not_revoked(name: str, there: Iterable[UserKey]) -> str | None:
    """Why a name's key can't be revoked, or None."""
    names = [each.name for each in there]
    if name in names:
        return None
    return f"{name!r} has no key; these have: {', '.join(names) or 'nobody'}"
