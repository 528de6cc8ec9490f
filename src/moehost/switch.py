"""Switches a node's services to another release of the engine, or brings the old one back: the program a node runs.

    python3 switch.py JOB.json      0: switched; 1: the old release serves, and why; 2: bad input

One file, standard library only. It runs as root in a unit of its own, so it goes on when the deploy that began it is
cut off. Until every service has answered with the new release, what is new stands in `/run` only, so a reboot in the
middle brings the old one back, too. The file `progress.json` beside the job says what it is at, and how it ended.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Units here come before those in /etc, and are gone after a reboot (systemd.unit(5), "Unit File Load Path").
TRIALS = Path("/run/systemd/system.control")
CANARY_PROMPT = "The three primary colours are"
CANARY_TOKENS = 64
CANARY_RUNS = 3
TIME_WAIT_S = 65


@dataclass(frozen=True)
class Server:
    """A llama-server of systemd's.

    + unit, address: its unit, and where it answers, HOST:PORT
    + keys: file with its API keys
    """

    unit: str
    address: str
    keys: str


@dataclass(frozen=True)
class Service(Server):
    """One service, and what is to become of it.

    + generation: what its process is recognised by once it runs with the new release
    + trial: its unit for the time of the trial
    + contents: its files afterwards, by path
    + leftovers: paths where it must have nothing afterwards
    + limit_s: how long a start may take
    """

    generation: str
    trial: str
    contents: dict[str, str]
    leftovers: list[str]
    limit_s: int


@dataclass(frozen=True)
class Job:
    """What to switch.

    + engine: folder with `releases`, `current`, `previous`
    + old, new: names of the releases
    + drain_s: how long to wait for a moment without requests, for each service
    + canary_share: what the new release must reach of the old one's decode speed
    """

    engine: str
    old: str
    new: str
    drain_s: float
    canary_share: float
    services: list[Service]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """Reads what `dataclasses.asdict` made."""
        return cls(**{**data, "services": [Service(**each) for each in data["services"]]})


class NotGood(Exception):
    """Why the new release can't stay: one line."""


@dataclass
class Switch:
    """One switch, from the first trial to its end; `say` gets a line for each thing that it does."""

    job: Job
    say: Callable[[str], None]
    # By unit: whether it served before, and its speed then, tok/s.
    before: dict[str, tuple[bool, float | None]] = field(default_factory=dict)

    def run(self) -> str | None:
        """Switch. Returns why the old release serves again, or None if the new one does."""
        try:
            for service in self.job.services:
                self._try(service)
        except NotGood as reason:
            self._go_back()
            return str(reason)
        self._keep()
        return None

    def _try(self, service: Service) -> None:
        active = unit_property(service.unit, "ActiveState") == "active"
        if active and _generation(service.unit) == service.generation:
            # A switch that was killed came this far.
            self.before.setdefault(service.unit, (True, None))
        else:
            self.before[service.unit] = (active, self._drained_speed(service) if active else None)
            self.say(f"{service.unit}: starts with {self.job.new}")
            write(TRIALS / service.unit, service.trial)
            systemctl("daemon-reload")
            if not self._starts(service):
                raise NotGood(f"{service.unit} does not start with {self.job.new}: {last_words(service.unit)}")
        new_tok_s, old_tok_s = self._canary(service), self.before[service.unit][1]
        if old_tok_s:
            self.say(f"{service.unit}: {new_tok_s:.1f} tok/s, {old_tok_s:.1f} before")
        if old_tok_s and new_tok_s < self.job.canary_share * old_tok_s:
            raise NotGood(
                f"{service.unit} decodes {new_tok_s:.1f} tok/s with {self.job.new} and {old_tok_s:.1f} with "
                f"{self.job.old}, less than the {self.job.canary_share:.0%} of engine.canary_share"
            )

    def _starts(self, service: Service) -> bool:
        """Start a service anew and wait until it is ready; False if it does not come to that."""
        for _ in range(2):
            try:
                systemctl("reset-failed", service.unit)
                if systemctl("restart", service.unit, timeout_s=service.limit_s + 300).returncode == 0:
                    return True
            except subprocess.TimeoutExpired:
                return False
            if "bind" not in last_words(service.unit, 10) or not _lingering(service):
                return False
            # Engines differ in whether they can bind a port that another one's last connections still hold.
            self.say(f"{service.unit}: waits until the last connections of the server before are forgotten")
            deadline = time.monotonic() + TIME_WAIT_S
            while _lingering(service) and time.monotonic() < deadline:
                time.sleep(1)
        return False

    def _drained_speed(self, service: Service) -> float | None:
        """Wait for a moment without requests, and measure the old release in it; None if it gives no measure."""
        drain(service, self.job.drain_s, self.say)
        if not self.job.canary_share:
            # Any speed will do.
            return None
        try:
            return self._canary(service)
        except NotGood as reason:
            self.say(f"the old release gives no measure: {reason}")
            return None

    def _canary(self, service: Service) -> float:
        """Best decode speed of a few answers to a fixed prompt, tok/s; raises NotGood where they are no answers.

        The best, because whatever else is at work on a node only slows.
        """
        body = {"prompt": CANARY_PROMPT, "n_predict": CANARY_TOKENS, "temperature": 0, "stop": []}
        body |= {"ignore_eos": True, "cache_prompt": False}
        speeds = []
        for _ in range(CANARY_RUNS):
            try:
                answer = json.loads(_ask(service, "/completion", json.dumps(body).encode()))
                text, timings = answer["content"], answer["timings"]
                tokens, tok_s = int(timings["predicted_n"]), float(timings["predicted_per_second"])
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                raise NotGood(f"{service.unit} does not answer the canary: {error}") from None
            if tokens != CANARY_TOKENS:
                raise NotGood(f"{service.unit} answers the canary with {tokens} tokens of {CANARY_TOKENS}")
            if is_degenerate(text):
                raise NotGood(f"{service.unit} answers the canary with rubbish: {text[:40]!r}")
            speeds.append(tok_s)
        return max(speeds)

    def _keep(self) -> None:
        """Make the new release the current one. A power cut between any two steps leaves something that starts."""
        engine = Path(self.job.engine)
        for service in self.job.services:
            for path, text in service.contents.items():
                write(Path(path), text)
            for path in service.leftovers:
                Path(path).unlink(missing_ok=True)
        if self.job.old:
            _link(engine / "previous", self.job.old)
        _link(engine / "current", self.job.new)
        for service in self.job.services:
            (TRIALS / service.unit).unlink(missing_ok=True)
        systemctl("daemon-reload")
        self.say(f"{self.job.new} is current")

    def _go_back(self) -> None:
        for service in self.job.services:
            (TRIALS / service.unit).unlink(missing_ok=True)
        systemctl("daemon-reload")
        for service in self.job.services:
            if service.unit not in self.before:
                continue
            served, _ = self.before[service.unit]
            self.say(f"{service.unit}: {'starts with ' + self.job.old if served else 'stops'} again")
            # A start that hangs is not waited for: stop ends it.
            systemctl("stop", service.unit, timeout_s=300)
            if served and not self._starts(service):
                self.say(f"{service.unit}: does not start with {self.job.old} either: {last_words(service.unit)}")


def is_degenerate(text: str) -> bool:
    """Whether an answer is what a miscompiled engine says: nothing, or one character over and over."""
    return len(set("".join(text.split()))) < 2


def drain(server: Server, limit_s: float, say: Callable[[str], None]) -> None:
    """Wait for a moment in which a server is at no request, at most so long."""
    deadline = time.monotonic() + limit_s
    while (busy := _requests(server)) and time.monotonic() < deadline:
        say(f"{server.unit}: waits for {busy} request(s) to end")
        time.sleep(0.5)
    if busy:
        # The server finishes them when it is told to end, for as long as its unit allows.
        say(f"{server.unit}: {busy} request(s) still at work after {limit_s:.0f} s")


def _lingering(service: Server) -> bool:
    """Whether connections that a server closed itself still hold its port (TIME_WAIT, one minute on Linux)."""
    port = service.address.rpartition(":")[2]
    return bool(subprocess.run(["ss", "-Htan", "state", "time-wait", f"sport = :{port}"], capture_output=True).stdout)


def _requests(service: Server) -> int:
    """How many requests a server is at; none where it does not say."""
    # Not /slots, which the units turn off: it shows the prompts of others.
    try:
        said = _ask(service, "/metrics").decode()
    except (OSError, http.client.HTTPException):
        return 0
    counts = re.findall(r"^\w+:requests_(?:processing|deferred)\s+(\d+)", said, re.MULTILINE)
    return sum(map(int, counts))


def _ask(service: Server, path: str, body: bytes | None = None) -> bytes:
    keys = (line.strip() for line in Path(service.keys).read_text().splitlines())
    key = next(line for line in keys if line and not line.startswith("#"))
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    # Kept alive and closed from here: a server that closes first can't bind its port again for a minute.
    connection = http.client.HTTPConnection(service.address, timeout=600)
    try:
        connection.request("POST" if body else "GET", path, body, headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"HTTP status {response.status}: {text[:200].decode(errors='replace')}")
    return text


def systemctl(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[bytes]:
    """What systemctl says; it may fail."""
    return subprocess.run(["systemctl", *words], capture_output=True, timeout=timeout_s)


def unit_property(unit: str, key: str) -> str:
    """One property of a unit, as systemd shows it."""
    return systemctl("show", "--value", "--property", key, unit).stdout.decode().strip()


def _generation(unit: str) -> str:
    """What the process of a unit was started with, or its child: that of a container is Podman's monitor."""
    pid = unit_property(unit, "MainPID")
    with suppress(OSError):
        for each in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found = re.search(rb"(?:^|\0)MOEHOST_GENERATION=([^\0]*)", Path("/proc", each, "environ").read_bytes())
            if found:
                return found[1].decode()
    return ""


def last_words(unit: str, lines: int = 2) -> str:
    """The end of a unit's journal, in one line."""
    command = ["journalctl", "--no-pager", "--output", "cat", "--lines", str(lines + 40), f"_SYSTEMD_UNIT={unit}"]
    said = subprocess.run(command, stdout=subprocess.PIPE).stdout.decode(errors="replace").splitlines()
    # Podman's own events have all labels of the image in them.
    words = [line.strip()[:200] for line in said if line.strip() and " UTC m=+" not in line]
    return " / ".join(words[-lines:]) or "its journal says nothing"


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o644)
    new.rename(path)


def _link(path: Path, release: str) -> None:
    """Let a link lead to a release, in one step."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(f"releases/{release}")
    new.rename(path)


def main(path: str) -> int:
    """Run the job at `path`, and say beside it how it goes."""
    progress = Path(path).with_name("progress.json")
    try:
        job = Job.from_json(json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{path}: no job that can be read ({error})", file=sys.stderr)
        return 2
    lines: list[str] = []

    def note(**end: Any) -> None:
        write(progress, json.dumps({"lines": lines, **end}))

    def say(line: str) -> None:
        if lines[-1:] != [line]:
            print(line, flush=True)
            lines.append(line)
            note()

    failure = Switch(job, say).run()
    note(ended=True, failure=failure)
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
