"""Proves that a build is what it should be and answers: the program that a node runs, handed to `python3 -`.

    python3 - JOB < prove.py      0: proven; 1: not, and why

One file, standard library only; JOB is JSON (see `Job`). Standard output is one JSON object: `proofs`, what was seen,
by name; and `failure`, one line, or null. Run it as nobody of importance and without a network: it starts what was
just built.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ANSWER_TOKENS = 8
LOAD_S = 120.0
PROMPT = list(range(33, 49))


@dataclass(frozen=True)
class Job:
    """What to prove.

    + programs: folder of the programs
    + commit, build_number: what `--version` must say
    + architectures: compute capabilities that there must be code for, without dots; none for a build without CUDA
    + vnni: whether the server must use `vpdpbusd`
    + cuobjdump: path of that tool, None where there is none
    + model: a small model
    + gpu_layers: layers of it to put on the cards, None for a build without CUDA
    + driver_stub: for a build with CUDA in a place that has no driver: path of the toolkit's stand-in for the
      driver's library, with which programs start and find no card
    """

    programs: str
    commit: str
    build_number: int
    architectures: list[str]
    vnni: bool
    cuobjdump: str | None
    model: str
    gpu_layers: int | None
    driver_stub: str | None = None

    @property
    def server(self) -> str:
        """Path of llama-server."""
        return str(Path(self.programs, "llama-server"))


class NotProven(Exception):
    """What is wrong with a build, in one line."""


def proofs(job: Job) -> Iterator[tuple[str, str]]:
    """Name and finding of each proof, in order; raises NotProven at the first that fails."""
    # A finding that says so, since nothing was seen: without that library the program can't even say its version.
    is_idle = job.driver_stub and not Path(job.driver_stub).exists()
    idle = "not started: there is no driver, and no stub of it" if is_idle else None
    yield "version", idle or _version(job)
    yield "gpu_options", idle or _gpu_options(job)
    if job.architectures:
        yield "device_code", _device_code(job)
    if job.vnni:
        yield "vpdpbusd", _vpdpbusd(job)
    yield "answer", idle or ("not asked: there is no driver" if job.driver_stub else _answer(job))


@contextmanager
def _driver(job: Job) -> Iterator[None]:
    """Lets programs find the stub of the driver's library under the name that they look for."""
    with tempfile.TemporaryDirectory() as folder:
        if job.driver_stub:
            Path(folder, "libcuda.so.1").symlink_to(job.driver_stub)
            os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, (os.environ.get("LD_LIBRARY_PATH"), folder)))
        yield


def _said(*command: str, timeout_s: float = 120) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotProven(f"`{' '.join(command)}` does not run: {error}") from None
    return done.stdout.decode(errors="replace")


def _version(job: Job) -> str:
    said = _said(job.server, "--version")
    found = re.search(r"^version: (\d+) \(([0-9a-f]{7,40})\)", said, re.MULTILINE)
    if not found:
        raise NotProven(f"--version says {said.strip()[-200:] or 'nothing'!r}, not a build number and a commit")
    if not job.commit.startswith(found[2]) or int(found[1]) != job.build_number:
        wanted = f"{job.build_number} ({job.commit[:9]})"
        raise NotProven(f"--version says {found[0].removeprefix('version: ')}, and {wanted} was built")
    return found[0].removeprefix("version: ")


def _gpu_options(job: Job) -> str:
    # ik_llama.cpp prints them only if it was compiled with an offload backend; no card is needed for that.
    there = re.search(r"^\s*-ngl,", _said(job.server, "--help"), re.MULTILINE) is not None
    if there != bool(job.architectures):
        state = "has no" if job.architectures else "has"
        raise NotProven(f"--help {state} GPU options, and CUDA is {'on' if job.architectures else 'off'}")
    return "in --help" if there else "none, CUDA is off"


def _device_code(job: Job) -> str:
    if not job.cuobjdump or not Path(job.cuobjdump).exists():
        return "not looked at: there is no cuobjdump"
    found = sorted(set(re.findall(r"[.]sm_(\w+)[.]cubin", _said(job.cuobjdump, "--list-elf", job.server))))
    if missing := [each for each in job.architectures if each not in found]:
        raise NotProven(
            f"there is code for sm_{', sm_'.join(found) or 'none'}, and none for sm_{', sm_'.join(missing)}"
        )
    return ", ".join(f"sm_{each}" for each in found)


def _vpdpbusd(job: Job) -> str:
    # Some hundred MB of text: counted where it is made.
    count = int(_said("sh", "-c", 'objdump -d --no-show-raw-insn "$0" | grep -c vpdpbusd', job.server).split()[-1])
    if not count:
        raise NotProven("the processor has AVX512-VNNI, but there is no vpdpbusd in the server: it would run slowly")
    return f"{count} in the server"


def _answer(job: Job) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [job.server, "-m", job.model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", "512", "-t", "2", "--no-mmap"]
    if job.gpu_layers is not None:
        command += ["-ngl", str(job.gpu_layers)]
    with tempfile.TemporaryFile() as log, _running(command, log) as server:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + LOAD_S
        while not _is_healthy(url):
            if server.poll() is not None:
                raise NotProven(f"the server ends ({_how(server.returncode)}) while it loads a model: {_last(log)}")
            if time.monotonic() > deadline:
                raise NotProven(f"the server does not load a small model within {LOAD_S:.0f} s: {_last(log)}")
            time.sleep(0.1)
        body = {"prompt": PROMPT, "n_predict": ANSWER_TOKENS, "ignore_eos": True, "temperature": 0, "stop": []}
        try:
            answer = _post(f"{url}/completion", body)
            tokens = answer["timings"]["predicted_n"]
        except (OSError, ValueError, KeyError) as error:
            raise NotProven(f"the server loads a small model and does not answer ({error}): {_last(log)}") from None
        if tokens != ANSWER_TOKENS:
            raise NotProven(f"the server answered {tokens} tokens where {ANSWER_TOKENS} were asked for")
    where = "on the CPU" if not job.gpu_layers else "on the cards"
    return f"{tokens} tokens {where}"


@contextmanager
def _running(command: list[str], log: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _is_healthy(url: str) -> bool:
    try:
        # The port may be bound long before anybody answers.
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _post(url: str, body: dict[str, object]) -> dict[str, dict[str, int]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def _last(log: object) -> str:
    log.seek(0)  # type: ignore[attr-defined]
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]  # type: ignore[attr-defined]
    return lines[-1][-300:] if lines else "no word from it"


def main(argument: str) -> int:
    """Print what was proven, and what was not."""
    found: dict[str, str] = {}
    failure = None
    # Some builds write a log where they are started.
    os.chdir(tempfile.gettempdir())
    try:
        job = Job(**json.loads(argument))
        with _driver(job):
            for proof, finding in proofs(job):
                found[proof] = finding
    except NotProven as reason:
        failure = str(reason)
    print(json.dumps({"proofs": found, "failure": failure}))
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
