"""How far a run is, as a small JSON file that others read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from moehost.files import write_json

RATE_WINDOW_S = 15.0


class Progress:
    """Tells whoever reads progress.json how far a run is.

    `done_bytes` counts over all files of the model: bytes on the disk in phase "download", bytes hashed in
    phase "verify". The two take turns, file by file; `eta_s` is for the download and else null.
    """

    def __init__(self, path: Path) -> None:
        self.total_bytes = 0
        self._path, self._phase, self._written_s = path, "", 0.0
        self._samples: deque[tuple[float, int]] = deque()

    def show(self, phase: str, done_bytes: int, error: str | None = None) -> None:
        """Writes the file, for an unchanged phase once a second at most."""
        now_s = time.monotonic()
        if phase != self._phase:
            self._samples.clear()
        elif now_s - self._written_s < 1:
            return
        self._phase, self._written_s = phase, now_s
        self._samples.append((now_s, done_bytes))
        while now_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        began_s, began_bytes = self._samples[0]
        rate = max(0, int((done_bytes - began_bytes) / (now_s - began_s))) if now_s > began_s else 0
        eta_s = (self.total_bytes - done_bytes) // rate if phase == "download" and rate else None
        state = {
            "phase": phase,
            "done_bytes": done_bytes,
            "total_bytes": self.total_bytes,
            "rate_bytes_s": rate,
        }
        # Whoever fills a disk says so; that a reader can't be told how far a run is, ends none.
        with suppress(OSError):
            write_json(self._path, {**state, "eta_s": eta_s, "error": error}, durable=False)

    def counter(self, phase: str, before_bytes: int) -> Callable[[int], None]:
        """Shows a phase of one file by its own bytes, when the files before it have so many."""
        return lambda done_bytes: self.show(phase, before_bytes + done_bytes)

    def fail(self, error: str) -> None:
        """Leaves the reason where the numbers stood; a full disk may not even have room for that."""
        self.show("failed", self._samples[-1][1] if self._samples else 0, error)
