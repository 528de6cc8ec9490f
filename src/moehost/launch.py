"""Launches engines on a node for `moehost tune`, in a unit of its own, while the service stands still.

    python3 -m moehost.launch FOLDER      0: told to end, or nobody listens any more; 2: bad input

Standard library only; the modules in `MODULES` go with it. FOLDER holds `task.json`. Each file `jobs/N.json` is
answered by `results/N.json`, in the order of N. It ends when there is a file `end`, and when the file `alive` was not
touched for some time: the computer that asked was closed. Before it stops the service it writes `restore`; that the
service starts again is up to the unit's ExecStopPost=, which also comes after a kill.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from moehost import rehearsal, rehearse, switch

MODULES = ("__init__", "dry_run", "launch", "rehearsal", "rehearse", "switch")
POLL_S = 0.1
SAID_BYTES = 6000
Why = Literal["ended", "late", "port", "abandoned"]


@dataclass(frozen=True)
class Task:
    """What a session is for.

    + server: the service that stands still meanwhile
    + user: account that engines run as
    + drain_s: how long to wait for the service's requests
    + silence_s: how long `alive` may stay untouched
    """

    server: switch.Server
    user: str
    drain_s: float
    silence_s: float

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """Reads what `dataclasses.asdict` made."""
        return cls(**{**data, "server": switch.Server(**data["server"])})


@dataclass(frozen=True)
class Run:
    """One start of an engine.

    + kind: `bench` prints and ends, `server` is sent the `requests`, `fit` is tried by `moehost.rehearse`
    + load: after a failure, other runs of this job with the same name are left out
    + timeout_s: for all of it
    + port: of a server; 0 for any that is free
    + requests: bodies for /completion, one after the other
    """

    kind: Literal["bench", "server", "fit"]
    load: str
    argv: list[str]
    timeout_s: float
    env: dict[str, str] = field(default_factory=dict)
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Ended:
    """How a run ended.

    + load: of the run
    + why: by itself, or ended here: too late, its port was taken, nobody waited for it
    + status: exit status, negative for a signal; None where it was ended here; 0 for a server that answered
    + output, said: standard output, and the last of standard error
    + answers: to the requests: their timings, or what was wrong
    """

    load: str
    why: Why
    status: int | None
    output: str
    said: str
    elapsed_s: float
    answers: list[dict[str, Any]] = field(default_factory=list)


class Session:
    """One session in a folder."""

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder, self.task = folder, task

    def run(self) -> None:
        """Stop the service, and answer jobs until it ends."""
        server = self.task.server
        if switch.unit_property(server.unit, "ActiveState") in ("active", "activating"):
            switch.write(self.folder / "restore", server.unit)
            switch.drain(server, self.task.drain_s, print)
            switch.systemctl("stop", server.unit, timeout_s=300)
        print(f"{server.unit} stands still", flush=True)
        while not self.is_over:
            job = next((each for each in self._jobs() if not self._result(each).exists()), None)
            if job is None:
                time.sleep(POLL_S)
                continue
            runs = [Run(**each) for each in json.loads(job.read_text())]
            ended: list[Ended] = []
            for run in runs:
                # What ran out of memory does so again, after another load of minutes.
                if not any(each.load == run.load and each.status != 0 for each in ended):
                    ended.append(self._fit(run) if run.kind == "fit" else self._launch(run))
            if not self.is_over:
                switch.write(self._result(job), json.dumps([asdict(each) for each in ended]))

    @property
    def is_over(self) -> bool:
        """Whether it was told to end, or nobody listens any more."""
        if (self.folder / "end").exists():
            return True
        silent_s = time.time() - (self.folder / "alive").stat().st_mtime
        return silent_s > self.task.silence_s

    def _jobs(self) -> list[Path]:
        return sorted((self.folder / "jobs").glob("*.json"), key=lambda path: int(path.stem))

    def _result(self, job: Path) -> Path:
        return self.folder / "results" / job.name

    def _fit(self, run: Run) -> Ended:
        argv = tuple(run.argv)
        job = rehearsal.Job(engine=argv[0], argv=argv[1:], env=run.env, timeout_s=run.timeout_s)
        try:
            result = rehearse.run(job)
        except (rehearse.RehearsalError, OSError) as error:
            return Ended(run.load, "ended", 1, "", str(error), 0.0)
        return Ended(
            run.load, "ended", 1 if result.refusal else 0, result.log, result.refusal or "", result.elapsed_s
        )

    def _launch(self, run: Run) -> Ended:
        began_s, words, port = time.monotonic(), run.argv, 0
        if run.kind == "server":
            try:
                port = _free_port(run.port)
            except OSError as error:
                return Ended(run.load, "port", None, "", f"port {run.port} is taken ({error.strerror})", 0.0)
            words = [*words, "--port", str(port)]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
            try:
                child = self._start(words, run.env, output, said)
            except OSError as error:
                return Ended(run.load, "ended", 127, "", f"{words[0]}: does not start ({error.strerror})", 0.0)
            answers: list[dict[str, Any]] = []

            def why() -> Why | None:
                if child.poll() is not None:
                    return "ended"
                if time.monotonic() - began_s > run.timeout_s:
                    return "late"
                return "abandoned" if self.is_over else None

            try:
                if run.kind == "server":
                    end = _ask_all(port, run.requests, run.timeout_s, answers, why)
                else:
                    end = _wait(why)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            is_served = run.kind == "server" and [each for each in answers if "error" not in each] == answers != []
            status = 0 if is_served else child.returncode if end == "ended" else None
            elapsed_s = round(time.monotonic() - began_s, 2)
            return Ended(run.load, end, status, _text(output), _text(said, SAID_BYTES), elapsed_s, answers)

    def _start(
        self, words: list[str], env: dict[str, str], output: IO[bytes], said: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        # Some engines write a log where they stand. LLAMA_ARG_*: would win over the command line.
        inherited = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=said,
            cwd="/tmp",  # noqa: S108  (the unit's own)
            env={**inherited, "HOME": "/tmp", **env},  # noqa: S108
            user=self.task.user,
            group=pwd.getpwnam(self.task.user).pw_gid,
            extra_groups=[],
            start_new_session=True,
        )


def _free_port(port: int) -> int:
    """This port, or with 0 any; raises OSError where it is taken."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", port))
        return int(trial.getsockname()[1])


def _wait(why: Callable[[], Why | None]) -> Why:
    while (end := why()) is None:
        time.sleep(POLL_S)
    return end


def _ask_all(
    port: int,
    requests: list[dict[str, Any]],
    limit_s: float,
    answers: list[dict[str, Any]],
    why: Callable[[], Why | None],
) -> Why:
    """Wait until a server is ready, then put the timings of its answers into `answers`, until something is wrong."""
    while not _is_ready(port):
        if end := why():
            return end
        time.sleep(POLL_S)
    for body in requests:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            answers.append(json.load(connection.getresponse())["timings"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            answers.append({"error": repr(error)})
            return why() or "ended"
        finally:
            connection.close()
        if end := why():
            return end
    return "ended"


def _is_ready(port: int) -> bool:
    # ik_llama.cpp accepts while it loads, and answers afterwards.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _text(file: IO[bytes], last: int | None = None) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - last, 0) if last else 0)
    return file.read().decode(errors="replace")


def main(path: str) -> int:
    """Answer the jobs of the folder at `path`."""
    folder = Path(path)
    try:
        task = Task.from_json(json.loads((folder / "task.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{folder}/task.json: can't be read ({error})", file=sys.stderr)
        return 2
    Session(folder, task).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
