"""What was found out about a machine: one sentence, how bad it is, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
# The fix of much that a deploy finds and puts right.
DEPLOY = "pyinfra inventory deploy.py"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    + area: what it belongs to: `driver`, `cdi`, `podman`, `cards`, `memory` ...
    + level: `ok`; `warning`, what an owner should know; `error`, what keeps a service from working as planned
    + says: a sentence without a full stop
    + fix: the command (or the step, where no command can do it) that mends it; none for `ok`
    """

    area: str
    level: Level
    says: str
    fix: str | None = None
