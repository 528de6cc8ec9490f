"""The lines of a benchmark as `moehost.bench` prints them: made here, or on a node and brought back as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from moehost import runs
from moehost.bench import Bench, BenchError, Job
from moehost.client import Client, ClientError
from moehost.terminal import host_of, pyinfra, pyinfra_program, reason

DEPLOY = "roles/bench/bench.py"
UNIT = "moehost-bench.service"
PROSE = Path(__file__).parents[2] / "templates/bench/prose.txt"
POLL_S = 0.2


@contextmanager
def here(job: Job, key: str) -> Iterator[Iterator[str]]:
    """The lines of a benchmark that this program makes itself."""

    def lines() -> Iterator[str]:
        try:
            made = Bench(job, Client(job.url, key), PROSE.read_text(encoding="utf-8"))
            yield json.dumps(asdict(made.opened))
            yield from map(runs.line, made.run())
        except (BenchError, ClientError) as error:
            yield json.dumps({"refusal": str(error)})

    yield lines()


@contextmanager
def there(job: Job, service: str, target: str, inventory: str) -> Iterator[Iterator[str]]:
    """The lines of a benchmark that a node makes, as they come; on the way out nothing of it goes on."""
    with tempfile.TemporaryDirectory(prefix="moehost-bench-") as name:
        folder, log = Path(name), Path(name, "log")
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        limit = ("--limit", host_of(target))
        data = ("--data", f"folder={folder}", "--data", f"service={service}")
        answers = folder / "answers.jsonl"
        answers.touch()
        with log.open("w") as talk:
            # A session of its own: Ctrl-C is for us.
            process = subprocess.Popen(
                [pyinfra_program(), inventory, *limit, DEPLOY, *data, "-y"],
                stdin=subprocess.DEVNULL,
                stdout=talk,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def lines() -> Iterator[str]:
            seen, line = False, ""
            with answers.open() as file:
                while True:
                    over = process.poll() is not None
                    while part := file.readline():
                        line += part  # it may be in the middle of being written
                        if line.endswith("\n"):
                            yield line
                            seen, line = True, ""
                    if over:
                        break
                    time.sleep(POLL_S)
            if not seen or process.returncode:
                yield json.dumps({"refusal": reason(log.read_text())})

        try:
            yield lines()
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pyinfra(inventory, *limit, "exec", "--", "systemctl", "stop", UNIT)
