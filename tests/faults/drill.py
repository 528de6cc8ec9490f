"""A fault: what it is called, what must come of it, and how it is really caused. A drill: the node that bears it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fixtures.node import ROOT, Node, changes

ANSWER = "http://127.0.0.1:8080/completion"
KEY = "$(cat /etc/moehost/tiny/api-keys)"
RUN = "Service | Run tiny, warm"


@dataclass(frozen=True)
class Fault:
    """A fault.

    + title, expected: the first two cells of its row
    + play: causes it, looks that it ends as expected, and returns what was seen
    """

    title: str
    expected: str
    play: Callable[[Drill], str]


def faults() -> tuple[list[Fault], Callable[[str, str], Callable[[Callable[[Drill], str]], Callable[[Drill], str]]]]:
    """A list of faults, and a decorator that puts one into it."""
    found: list[Fault] = []

    def fault(title: str, expected: str) -> Callable[[Callable[[Drill], str]], Callable[[Drill], str]]:
        def add(play: Callable[[Drill], str]) -> Callable[[Drill], str]:
            found.append(Fault(title, expected, play))
            return play

        return add

    return found, fault


class Drill:
    """The node, the settings that it should have just now, and the clock of the fault that is at work."""

    def __init__(self, node: Node, settings: dict[str, Any]) -> None:
        self.node, self.settings = node, settings
        self.took_s: float | None = None
        self._since_s = 0.0

    def run(self, command: str) -> str:
        """What a shell command prints on the node; it must succeed."""
        return self.node.run(command)

    def tries(self, command: str) -> str:
        """The same of a command that may fail."""
        return self.node.run(f"( {command} ) 2>&1 || true")

    def program(self, text: str, *words: str) -> str:
        """What a Python program prints on the node."""
        command = ["podman", "exec", "--interactive", self.node.name, "python3", "-", *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def change(self, **service: Any) -> None:
        """Give the service other settings, which the next deploy has to bring."""
        self.settings = copy.deepcopy(self.settings)
        self.settings["services"][0].update(service)

    @contextlib.contextmanager
    def other_settings(self) -> Iterator[None]:
        """Settings that are changed meanwhile are as before afterwards."""
        before = self.settings
        try:
            yield
        finally:
            self.settings = before

    @contextlib.contextmanager
    def mounted(self, folder: str, size: str) -> Iterator[None]:
        """A folder on a small disk of its own, which is gone afterwards, busy or not."""
        self.run(f"mkdir -p {folder} && mount -t tmpfs -o size={size},mode=0755 tmpfs {folder}")
        try:
            yield
        finally:
            self.run(f"umount --lazy {folder}")

    def something_to_do(self) -> None:
        """Another context than now."""
        self.change(context=4096 if self.settings["services"][0]["context"] == 8192 else 8192)

    def deploy(self, settings: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """A deploy of the settings that the node should have."""
        return self.node.deploy(settings or self.settings)

    @contextlib.contextmanager
    def deploying(self, **environment: str) -> Iterator[Deploy]:
        """A deploy in the background, with more in its environment; what is left of it in the end is killed."""
        deploy = Deploy(self.node, self.settings, environment)
        try:
            yield deploy
        finally:
            deploy.kill()

    def fails(self, *sentences: str, settings: dict[str, Any] | None = None) -> str:
        """A deploy that must fail with these sentences; all that it said."""
        return failed(self.deploy(settings), *sentences)

    def clock(self) -> None:
        """From here it counts: the fault is there, or is over."""
        self.took_s, self._since_s = None, time.monotonic()

    def recovered(self) -> None:
        """Until here."""
        self.took_s = time.monotonic() - self._since_s

    def converges(self, *wanted: str) -> list[str]:
        """The next deploy must end well, and do at least this; the node has recovered. Names of what it changed."""
        done = changes(self.deploy())
        self.recovered()
        assert set(wanted) <= set(done), done
        return done

    def answers(self) -> bool:
        """Whether the service answers a question, with its key."""
        body = json.dumps({"prompt": "once", "n_predict": 4, "ignore_eos": True, "stop": []})
        header = f"Authorization: Bearer {KEY}"
        said = self.tries(f"curl --silent --fail --max-time 20 --header \"{header}\" --data '{body}' {ANSWER}")
        try:
            return bool(json.loads(said)["timings"]["predicted_n"] == 4)
        except (ValueError, KeyError):
            return False

    def is_ready(self) -> bool:
        """Whether the service is warm, too: it answers before, and a deploy that comes in between waits for it."""
        return self.tries(f"systemctl is-active {self.node.unit}").strip() == "active" and self.answers()

    @contextlib.contextmanager
    def goes_on(self) -> Iterator[None]:
        """The service is the same process afterwards, and answers."""
        before = self.node.process
        assert "ActiveState=active" in before, before
        yield
        assert self.node.process == before, self.node.process
        assert self.answers(), "does not answer"

    def settled(self) -> None:
        """The service answers, nothing has failed, nothing is half written, and a deploy finds nothing to do."""
        assert self.answers()
        assert self.run("systemctl --failed --plain --no-legend") == ""
        assert self.run("find /etc /opt/moehost /usr/local -name '*.new' 2>/dev/null") == ""
        left = changes(self.deploy())
        assert left == [], left


class Deploy:
    """A deploy in a process group of its own, whose talk is read while it runs."""

    def __init__(self, node: Node, settings: dict[str, Any], environment: dict[str, str]) -> None:
        command = ["pyinfra", str(node.inventory(settings)), "deploy.py", "--yes", "--json"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True,
            env=os.environ | environment,
        )  # fmt: skip
        self.lines: list[str] = []
        self.printed: list[str] = []
        self._readers = [
            threading.Thread(target=into.extend, args=(stream,), daemon=True)
            for into, stream in ((self.lines, self.process.stderr), (self.printed, self.process.stdout))
        ]
        for each in self._readers:
            each.start()

    def reach(self, text: str, limit_s: float = 180) -> None:
        """Wait until it says something."""
        self.meets(lambda: any(text in line for line in self.lines), limit_s)

    def meets(self, what: Callable[[], bool], limit_s: float = 180) -> None:
        """Wait for something that must come while it is at work."""
        end_s = time.monotonic() + limit_s
        while not what():
            assert self.process.poll() is None and time.monotonic() < end_s, "".join(self.lines[-20:])
            time.sleep(0.02)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; as if it had been run."""
        self.process.wait(timeout=300)
        for each in self._readers:
            each.join()
        return subprocess.CompletedProcess([], self.process.returncode, "".join(self.printed), "".join(self.lines))

    def kill(self) -> None:
        """Kill it with all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def failed(deploy: subprocess.CompletedProcess[str], *sentences: str) -> str:
    """A deploy that has failed, with these sentences and no traceback; all that it said."""
    assert deploy.returncode == 1, deploy.stderr[-2000:]
    assert "Traceback" not in deploy.stderr, deploy.stderr
    for each in sentences:
        assert each in deploy.stderr, deploy.stderr[-3000:]
    return deploy.stderr
