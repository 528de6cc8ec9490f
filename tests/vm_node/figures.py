"""How long things take on the virtual node. A module of its own: pytest loads a conftest.py under another name."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

taken: dict[str, str] = {}


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Keeps how long something took."""
    started = time.monotonic()
    yield
    taken[what] = f"{time.monotonic() - started:.0f} s"
