"""What an owner is told when a unit has failed. Standard library only, as it runs on the node.

    python3 -m moehost.message BY HOST UNIT [TO] <JOURNAL

prints the title in a first line and then what is sent by `ntfy`, `webhook` or `mail`. The journal is the unit's own
lines; `RESULT` and `RESTARTS` in the environment are what systemd says of it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from moehost import last_words

MODULES = ("__init__", "last_words", "message")
TEST = "test"
# It asks every host of the inventory: what a node is called there, it does not know.
NEXT = "moehost doctor"
# Keys and tokens; a line that speaks of them is left out before (last_words.KEYS).
SECRET = re.compile(r"\b(sk|hf|tk|gh[a-z])[-_]\S+|[A-Za-z0-9_+=-]{32,}")
# Also of lines that a program has printed in colours.
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Message:
    """A unit that has failed.

    + result: in systemd's words, e.g. `oom-kill`
    + restarts: how often systemd has tried it anew
    + reason: the line of the journal that says why, empty where there is none
    """

    host: str
    unit: str
    result: str = ""
    restarts: int = 0
    reason: str = ""

    @property
    def title(self) -> str:
        """In one line."""
        if self.unit == TEST:
            return f"{self.host}: moehost can tell you"
        return f"{self.host}: {self.unit} has failed"

    @property
    def text(self) -> str:
        """What a person reads."""
        if self.unit == TEST:
            return f"This is a test. When a unit of {self.host} fails, a message like this comes."
        again = f", {self.restarts} restart(s) did not help" if self.restarts else ""
        lines = [f"{self.unit} of {self.host} has failed ({self.result or 'no result'}){again}."]
        if self.reason:
            lines.append(f"It says: {self.reason}")
        lines.append(f"Next: {NEXT}; or on the node: journalctl -u {self.unit} -n 50")
        return "\n".join(lines)

    def body(self, by: str, to: str = "") -> str:
        """What is sent; ValueError for a way that is none."""
        if by == "ntfy":
            return self.text
        if by == "webhook":
            # `text` is what Mattermost, Slack and Matrix bridges show, `content` what Discord does.
            facts = {"host": self.host, "unit": self.unit, "result": self.result, "restarts": self.restarts}
            said = {"reason": self.reason, "next": NEXT, "title": self.title}
            return json.dumps({**facts, **said, "text": self.text, "content": self.text})
        if by == "mail":
            heads = [f"To: {to}", f"Subject: {self.title}", "Auto-Submitted: auto-generated"]
            heads += ["MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", ""]
            return "\n".join([*heads, self.text])
        raise ValueError(f"{by!r} is none of ntfy, webhook, mail")


def reason(unit: str, journal: str) -> str:
    """The line that says why, without what looks like a key and without control characters."""
    lines = [line for line in journal.splitlines() if not re.search(last_words.KEYS, line, re.IGNORECASE)]
    return SECRET.sub("<...>", CONTROL.sub("", last_words.why(unit, [CONTROL.sub("", line) for line in lines])))


def main(words: Sequence[str]) -> None:
    """Prints a message."""
    by, host, unit, *to = words
    restarts = os.environ.get("RESTARTS", "")
    message = Message(
        host=host,
        unit=unit,
        result=os.environ.get("RESULT", ""),
        restarts=int(restarts) if restarts.isdecimal() else 0,
        reason=reason(unit, sys.stdin.read()),
    )
    print(f"{message.title}\n{message.body(by, *to)}")


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    main(sys.argv[1:])
