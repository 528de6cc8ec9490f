"""`/etc/os-release`: what a system is."""

from __future__ import annotations


def fields(text: str) -> dict[str, str]:
    """The fields of the file, without their quotes."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}
