"""Models that an inspection has found damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePosixPath

from moehost.finding import DEPLOY, Finding


def findings(texts: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each damaged model; the others are not read now, so nothing is said of them."""
    for line in texts["damaged"].splitlines():
        path, _, text = line.partition(":{")
        files = "a file"
        with suppress(ValueError, KeyError):
            files = ", ".join(json.loads("{" + text)["files"])
        folder = PurePosixPath(path).parent
        says = f"{folder}: {files} is not what its manifest says"
        yield Finding("models", "error", says, f"{DEPLOY}; if no service needs it, rm -r {folder}")
