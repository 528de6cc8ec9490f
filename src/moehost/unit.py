"""How words are written into systemd units."""

from __future__ import annotations

from collections.abc import Sequence

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%@_-+=:,./|()[]*")


def exec_line(words: Sequence[str]) -> str:
    """A command line for `ExecStart=`, which is no shell: quoted where needed, `%` specifiers left to work.

    Raises ValueError for backslashes, dollars, double quotes and line breaks: systemd and Quadlet
    read them differently.
    """
    return " ".join(_word(word) for word in words)


def _word(word: str) -> str:
    if any(character in word for character in '\\$"\n'):
        raise ValueError(f"{word!r} holds a backslash, dollar, quote or line break, which a unit would change")
    return word if word and set(word) <= _PLAIN else f'"{word}"'
