"""Lets ik_llama.cpp try a plan without the weights: the program that a node runs.

    python3 -m moehost.rehearse JOB.json    0: the engine's buffers stand; 1: they do not; 2: bad input

Standard library only; the modules in `MODULES` go with it. The engine gets the model's true header with a hole of
true length behind it and ``--dry-run``, which allocates every buffer and reads no weights. It is ended as soon as it
would serve, and nothing stays behind. Standard output is one JSON object; the controller reads its log with
`moehost.dry_run`.

The GPUs must be as empty as the plan takes them to be: the engine allocates what it will need. Host memory is only
reserved, not filled, but for the KV cache of a plan without GPUs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal, NoReturn

from moehost import dry_run
from moehost.rehearsal import Job, Result, Shard

MODULES = ("__init__", "dry_run", "rehearsal", "rehearse")

EXAMPLES = """\
examples:
  python3 -m moehost.rehearse job.json
  python3 -m moehost.rehearse job.json | jq -r .log

a job (engine and argv are required, the rest shows the defaults); without shards, argv's own model is tried:
  {"engine": "/opt/ik_llama.cpp/bin/llama-server", "argv": ["-m", "MODEL.gguf", "-c", "262144", "--no-mmap"],
   "env": {}, "shards": [{"name": "MODEL.gguf", "header_bytes": 11980000, "size_bytes": 228234805728}],
   "headers": "/tmp/headers.bin", "folder": null, "timeout_s": 300, "overcommit": false}
  headers: the shards' headers one after the other; folder: where the sparse files go, null for the system's own;
  overcommit: set vm.overcommit_memory=1 meanwhile, for a machine with less memory than the model

exit status: 0 the buffers stand, 1 they do not (with one line that says why), 2 bad input
"""

READY = b"HTTP server listening"  # examples/server/server.cpp:2210 of ik_llama.cpp 8337e4cd, once all contexts stand
MAX_LOG_BYTES = 16 << 20  # a normal start prints some 15 kB
HOLE_BYTES = 64 << 20
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
End = Literal["ready", "ended", "late", "endless"]  # why the engine is not listened to any longer

PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

# What of a service's command line must not reach a rehearsal, with the count of values that go, too: what it is
# given anew, files that exist only for the service, and what would keep the log from standard output.
_REPLACED = {
    "--host": 1,
    "--port": 1,
    "--api-key-file": 1,
    "--slot-save-path": 1,
    "--log-file": 1,
    "--log-disable": 0,
}


class RehearsalError(RuntimeError):
    """Why the engine could not even be asked; one line that says how to mend it."""


def arguments(argv: Sequence[str], model: str) -> list[str]:
    """A service's command line made into that of a rehearsal: this model, no weights, any free port of loopback."""
    # A rehearsal has no pools of huge pages, and would fill them with nothing.
    words = ["--no-mmap" if word == "-thp" else word for word in argv]
    words[words.index("-m") + 1] = model
    for flag, values in _REPLACED.items():
        while flag in words:
            at = words.index(flag)
            del words[at : at + 1 + values]
    return [*words, "--host", "127.0.0.1", "--port", "0", "--dry-run", "--no-warmup"]


def run(job: Job) -> Result:
    """Tries a job; raises RehearsalError where the engine cannot be asked, OSError where the disk refuses."""
    require_dry_run(job.engine)
    with (
        tempfile.TemporaryDirectory(prefix="moehost-rehearse-", dir=job.folder) as name,
        overcommitting() if job.overcommit else nullcontext(),
    ):
        folder = Path(name).resolve()  # Python before 3.12 leaves it relative, and the engine stands elsewhere
        model = job.argv[job.argv.index("-m") + 1]
        if job.headers is not None:
            model = str(write_sparse(folder, job.shards, Path(job.headers)))
        return _start(job, arguments(job.argv, model), folder)


def require_dry_run(engine: str) -> None:
    """Raises RehearsalError for an engine that has no --dry-run, such as llama.cpp's own server."""
    try:
        told = subprocess.run([engine, "--help"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RehearsalError(f"{engine}: does not tell its flags ({error}); name an installed llama-server") from None
    if not re.search(r"(?<!\S)--dry-run\b", told.stdout + told.stderr):
        raise RehearsalError(f"{engine}: has no --dry-run; only ik_llama.cpp can try a plan without the weights")


def write_sparse(folder: Path, files: Sequence[Shard], headers: Path) -> Path:
    """Writes each header with a hole of the file's true length behind it; returns the first file.

    Raises RehearsalError where `headers` is not what the shards say, where the file system would write the holes out,
    and where it has no room for the headers.
    """
    needed_bytes = sum(shard.header_bytes for shard in files)
    if headers.stat().st_size != needed_bytes:
        raise RehearsalError(
            f"{headers}: has {headers.stat().st_size} bytes of headers, not {needed_bytes}; send it anew"
        )
    _require_holes(folder)
    state = os.statvfs(folder)
    if state.f_bavail * state.f_frsize < needed_bytes + (1 << 20):
        raise RehearsalError(f"{folder.parent}: has no room for {needed_bytes} bytes of headers; name another folder")
    with headers.open("rb") as source:
        for shard in files:
            path = folder / shard.name
            try:
                path.write_bytes(source.read(shard.header_bytes))
                os.truncate(path, shard.size_bytes)
            except OSError as error:
                raise RehearsalError(
                    f"{folder.parent}: takes no file of {shard.size_bytes} bytes ({error.strerror}); "
                    "name another folder"
                ) from error
    return folder / files[0].name


def _require_holes(folder: Path) -> None:
    """A hole of 64 MiB first: a file system without them would fill the disk with the model's zeros."""
    probe = folder / "hole"
    try:
        probe.touch()
        os.truncate(probe, HOLE_BYTES)
        has_holes = probe.stat().st_blocks * 512 < HOLE_BYTES // 2
    except OSError:
        has_holes = False
    probe.unlink(missing_ok=True)
    if not has_holes:
        raise RehearsalError(f"{folder.parent}: its file system has no sparse files; name a folder on another one")


@contextmanager
def overcommitting() -> Iterator[None]:
    """Sets vm.overcommit_memory=1 and restores it; raises RehearsalError where that is not allowed."""
    before = OVERCOMMIT.read_text()
    try:
        OVERCOMMIT.write_text("1")
    except OSError as error:
        raise RehearsalError(f"{OVERCOMMIT}: {error.strerror}; run as root of the machine itself") from error
    try:
        yield
    finally:
        OVERCOMMIT.write_text(before)


def _start(job: Job, words: Sequence[str], folder: Path) -> Result:
    began_s = time.monotonic()
    try:
        child = subprocess.Popen(
            [job.engine, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,  # the engine leaves a llama.log where it stands
            env=_environment(job.env),
            preexec_fn=_be_expendable,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RehearsalError(f"{job.engine}: does not start ({error})") from error
    status = None
    try:
        log, end = _listen(child, began_s + job.timeout_s)
        if end == "ended":
            with suppress(subprocess.TimeoutExpired):
                status = child.wait(timeout=5)
    finally:
        child.kill()
        child.wait()
    refusal = None if end == "ready" else dry_run.refusal(log) or _ending(log, end, status, job.timeout_s)
    return Result(refusal, log, status, round(time.monotonic() - began_s, 1))


def _environment(plan: Mapping[str, str]) -> dict[str, str]:
    """The plan's environment on top of this program's, without what would change the engine's arguments."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_ARG_")}
    # Pinned memory is filled page by page as soon as it is allocated: 200 GiB of it take minutes and all of the RAM.
    # Without it the buffers have the same sizes, by ggml-cuda.cu:1526.
    return {**inherited, **plan, "GGML_CUDA_NO_PINNED": "1"}


def _be_expendable() -> None:
    """Runs in the child: it dies with this program, dumps no core of the model's size, and yields to services."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _listen(child: subprocess.Popen[bytes], until_s: float) -> tuple[str, End]:
    """What the engine says until it would serve, and why listening ended."""
    assert child.stdout is not None  # noqa: S101 - it is a pipe, which the type checker cannot see
    log = bytearray()
    end: End = "late"
    with selectors.DefaultSelector() as selector, child.stdout as stream:
        selector.register(stream, selectors.EVENT_READ)
        while (left_s := until_s - time.monotonic()) > 0:
            if not selector.select(left_s):
                continue
            part = os.read(stream.fileno(), 1 << 16)
            log += part
            if not part:
                end = "ended"
            elif log.find(READY, max(0, len(log) - len(part) - len(READY))) >= 0:
                end = "ready"
            elif len(log) > MAX_LOG_BYTES:
                end = "endless"
            else:
                continue
            break
    return log.decode("utf-8", "replace"), end


def _ending(log: str, end: End, status: int | None, timeout_s: float) -> str:
    """What can be said of an engine that does not say itself why it came to nothing."""
    if end == "late":
        return f"the engine was not ready after {timeout_s:g} s; give the job a larger timeout_s"
    if end == "endless":
        return f"the engine printed more than {MAX_LOG_BYTES >> 20} MiB; take verbose flags out of server_args"
    if status == -signal.SIGKILL:
        return "the engine was killed, as the kernel does when memory runs out; end other programs that take much"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it said nothing")
    return f"the engine ended with status {status}: {last[:300]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop(number: int, _frame: object) -> NoReturn:
    """Ends by way of all `finally`, once: a second signal must not interrupt the clearing up."""
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main(given: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m moehost.rehearse",
        description="Lets ik_llama.cpp try a plan without the weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="JOB.json", help="what to try")
    path = parser.parse_args(given).job
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        job = Job.parse(path.read_text())
    except (OSError, ValueError) as error:
        _say(f"error: {path}: {error.strerror if isinstance(error, OSError) else error}")
        return 2
    try:
        result = run(job)
    except RehearsalError as error:
        result = Result(str(error), "", None, 0.0)
    except OSError as error:
        result = Result(f"{error.filename or 'the disk'}: {error.strerror}; mend it and try again", "", None, 0.0)
    print(result.to_json(), flush=True)
    if result.refusal is None:
        return 0
    _say(f"error: {result.refusal}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
