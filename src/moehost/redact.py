"""Takes out of texts and command lines what an owner would not post: hosts, users, folders, keys, addresses.

What is taken out leaves a word in angle brackets. Nothing is looked up: names that look like any word, such as a
host's or a user's, have to be given.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

# Values of flags and of keys in data, by what they hold; `--api-key-file`, `hf_token` and `hostname` are meant.
SECRET = re.compile(r"(.*[-_])?(api[-_]?keys?|hft|token|password|passwd|secret|key)([-_]file)?")
NAMED = {"host": "<host>", "hostname": "<host>", "fqdn": "<host>", "user": "<user>", "username": "<user>"}
UNIQUE = re.compile(r"(.*[-_])?(serial|uuid|mac|machine[-_]id)(.*number)?")
FILE_FLAGS = ("m", "model", "mm", "mmproj", "md", "model-draft")
# Suffixes of names that mean something at somebody's home only (RFC 6762, RFC 8375, and what routers use).
PRIVATE = "local|lan|home|internal|intranet|localdomain|corp|home[.]arpa|fritz[.]box"
KEPT_HOSTS = ("localhost", "ip6-localhost")
# The last part of a path stays where it is a file or one of the engine's programs; a folder may bear any name.
TELLING = re.compile(r"[^/]+[.][A-Za-z][A-Za-z0-9]{0,7}|llama-[a-z-]+")

_PART = r"[^\s/\"'`,;:()<>|]+"
_PATTERNS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), lambda found: f"{found[1]} <secret>"),
    (re.compile(r"\b(?:sk|hf|ghp|github_pat)[-_][\w-]{6,}"), lambda _: "<secret>"),
    (
        re.compile(
            r"(?i)\b((?:api|access|auth|hf)[-_ ]?(?:key|token)|password|passwd|secret)(['\"]?\s*[:=]\s*['\"]?)"
            r"[^\s'\"<,;&]+"
        ),
        lambda found: f"{found[1]}{found[2]}<secret>",
    ),
    (
        re.compile(r"(?i)\b(https?|ssh|ftp|wss?)://(?:[^\s/@'\"<>]+@)?(\[[0-9a-f:.]+\]|[^\s/:'\"<>]+)"),
        lambda found: _url(found),
    ),
    (
        re.compile(r"(['\"`])((?:file://|~|[.]{1,2})?/[^'\"`\n]+)\1"),
        lambda found: f"{found[1]}{_path(found[2])}{found[1]}",
    ),
    (re.compile(rf"(?<![\w.<>/:~-])(?:file://|~\w*|[.]{{1,2}})?(?:/{_PART})+/?"), lambda found: _path(found[0])),
    (re.compile(r"(?<=[=:,])~?(?:/[\w.@+-]+){2,}/?"), lambda found: _path(found[0])),
    (re.compile(r"(?<![\w.])[\w.+-]+@[A-Za-z0-9][\w.-]*\b"), lambda _: "<user>@<host>"),
    (re.compile(rf"(?i)(?<![\w.-])(?:[a-z0-9-]+[.])+(?:{PRIVATE})\b(?![.\w-])"), lambda _: "<host>"),
    (re.compile(r"(?i)\b(?:GPU-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), lambda _: "<uuid>"),
    (re.compile(r"(?i)(?<![\w:])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:])"), lambda _: "<address>"),
    (re.compile(r"(?<![\w.])\d{1,3}(?:[.]\d{1,3}){3}(?![\w.]*\d)"), lambda found: _address(found[0])),
    (
        re.compile(r"(?i)(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:%\w+)?(?![\w:])"),
        lambda found: _address(found[0]),
    ),
)


def redact(data: Any, names: Iterable[str] = ()) -> Any:
    """Texts, lists and mappings of them without what is private; idempotent.

    A list of the key `argv` is read as a command line. `names` are further words that must not appear: of hosts, of
    users, keys.
    """
    # As given and as a sentence begins, but not in capitals: a host called epyc must not take the processor's name.
    # Longest first: a host's full name goes before its first part.
    words = sorted({form for name in names if name for form in (name, name.capitalize())}, key=len, reverse=True)
    named = re.compile("|".join(rf"(?<![\w<]){re.escape(word)}(?![\w>])" for word in words)) if words else None
    return _redacted(data, named)


def _redacted(data: Any, named: re.Pattern[str] | None) -> Any:
    match data:
        case str():
            return _text(data, named)
        case dict():
            return {key: _value(str(key), value, named) for key, value in data.items()}
        case list() | tuple():
            return [_redacted(each, named) for each in data]
    return data


def _text(text: str, named: re.Pattern[str] | None) -> str:
    # Names go first, since a path may end in one, and then again nothing is left of it.
    text = named.sub("<name>", text) if named else text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _value(key: str, value: Any, named: re.Pattern[str] | None) -> Any:
    """What stands under a key of a mapping."""
    if key == "argv" and isinstance(value, list | tuple):
        return list(_argv([str(word) for word in value], named))
    if isinstance(value, str) and value and (instead := _by_name(key.lower(), value)):
        return instead
    return _redacted(value, named)


def _by_name(key: str, value: str) -> str | None:
    """What replaces a value because of its name alone; None where its text decides."""
    if SECRET.fullmatch(key):
        return "<secret>"
    if UNIQUE.fullmatch(key):
        return "<id>"
    if key in NAMED and not _is_kept(value):
        return NAMED[key]
    return None


def _argv(words: Sequence[str], named: re.Pattern[str] | None) -> Iterable[str]:
    """A command line; a value may be a word of its own, or follow its flag's equals sign."""
    flag = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            yield f"{name}={_argument(name, value, named)}"
            flag = ""
        elif word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            yield word
            flag = word
        else:
            yield _argument(flag, word, named)
            flag = ""


def _argument(flag: str, value: str, named: re.Pattern[str] | None) -> str:
    name = flag.lstrip("-")
    if value and (instead := _by_name(name, value)):
        return instead
    if name in FILE_FLAGS or re.match(r"(file://|~\w*|[.]{1,2})?/", value):
        value = _path(value)
    return _text(value, named)


def _path(path: str) -> str:
    last = PurePosixPath(path).name
    return last if TELLING.fullmatch(last) else "<path>"


def _url(found: re.Match[str]) -> str:
    return found[0] if _is_kept(found[2].strip("[]")) and "@" not in found[0] else f"{found[1]}://<host>"


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:  # a version, a time
        return text
    return text if _is_kept(text) else "<address>"


def _is_kept(host: str) -> bool:
    """Whether a host is every machine's own name for itself, or for all of its addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in KEPT_HOSTS or host.startswith("<")
    return address.is_loopback or address.is_unspecified
