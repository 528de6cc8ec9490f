"""The deploy of one node as a process of its own: what it says goes to a log, what it does is heard as it happens.

One process for each node, since nothing that goes wrong in one of them can then end the others, no node waits for a
slower one, and each can be ended by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moehost.terminal import pyinfra_program, reason

# After the deploy, in the same connection: how the node is.
DEPLOY, LOOK = "deploy.py", "roles/fleet/look.py"
# What the pyinfra of a node is told: the number of a pipe that hears of operations and roles as they come, and the
# file whose lock a node holds while it reboots.
EVENTS, TURNS = "MOEHOST_EVENTS_FD", "MOEHOST_TURNS"
END_S = 10


@dataclass
class Deployed:
    """What came of it.

    + roles: as `pyinfra --json` says it
    + failed: why, in one line; None for one that went well
    + texts: of the fact `roles.fleet.Fleet`, afterwards; empty where the deploy failed
    """

    roles: list[dict[str, Any]]
    failed: str | None
    texts: dict[str, str]
    duration_s: float


@dataclass
class Deploys:
    """Deploys of an inventory's nodes, side by side.

    + folder: where the logs go; it is there
    + dry: only say what would change
    + at_once: how many nodes are deployed at the same time, at most
    + heard: gets the events of `roles.timing` as they come, from several threads
    """

    inventory: str
    folder: Path
    dry: bool
    at_once: int
    heard: Callable[[dict[str, Any]], None]
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _ended: bool = False

    def __post_init__(self) -> None:
        self._places = threading.BoundedSemaphore(self.at_once)

    def deploy(self, node: str, label: str) -> Deployed:
        """Deploy a node; returns when it is through.

        + label: the node's name as one of a file
        """
        log, printed = self.folder / f"{label}.log", self.folder / f"{label}.json"
        with self._places:
            started_s, texts = time.monotonic(), dict[str, str]()
            if self._ended:
                return Deployed([], "not begun", {}, 0.0)
            for event in self._events(self._command(node), log, printed):
                if "looked" in event:
                    texts = event["looked"]
                else:
                    self.heard(event)
            duration_s = time.monotonic() - started_s
        try:
            found = json.loads(printed.read_text(encoding="utf-8"))["hosts"][node]
        except (ValueError, KeyError):
            # It was killed, or never came to its first host.
            return Deployed([], reason(log.read_text(encoding="utf-8", errors="replace")), {}, duration_s)
        failed = found["failed"]
        if failed is None and not (self.dry or any(texts.values())):
            failed = "can't say how it is after the deploy"
        # The look at the end is ours, and no role.
        return Deployed([each for each in found["roles"] if each["role"]], failed, texts, duration_s)

    def _command(self, node: str) -> list[str]:
        words = [pyinfra_program(), self.inventory, "--limit", node, DEPLOY]
        return [*words, "--dry", "--json"] if self.dry else [*words, LOOK, "--yes", "--json"]

    def _events(self, command: list[str], log: Path, printed: Path) -> Iterator[dict[str, Any]]:
        """Run a command, and yield what it tells until its end."""
        there, here = os.pipe()
        environment = os.environ | {EVENTS: str(here), TURNS: str(self.folder / "turns")}
        with os.fdopen(there, encoding="utf-8") as events:
            with log.open("wb") as talk, printed.open("wb") as data:
                try:
                    # A session of its own: Ctrl-C is for us, and so is the order in which things end.
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=data,
                        stderr=talk,
                        pass_fds=(here,),
                        env=environment,
                        start_new_session=True,
                    )
                finally:
                    os.close(here)
            self._running.add(process)
            if self._ended:
                self.end()
            # One that is killed may leave half a line.
            yield from (json.loads(line) for line in events if line.endswith("\n"))
            process.wait()
            self._running.discard(process)

    def end(self) -> None:
        """End what is under way, and what would begin; a node is left as a killed deploy leaves it."""
        self._ended = True
        for process in list(self._running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in list(self._running):
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
