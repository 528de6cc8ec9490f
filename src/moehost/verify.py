"""Has an engine check a plan: on this computer, or on a node through pyinfra."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from moehost import dry_run
from moehost.dry_run import Buffers
from moehost.gguf import GgufSet
from moehost.plan import Plan
from moehost.rehearsal import Job, Result, shards
from moehost.terminal import pyinfra, reason

NODE_ENGINE = "/opt/moehost/engine/current/bin/llama-server"
DEPLOY = "roles/llama_server/rehearse.py"
TIMEOUT_S = 300.0


class VerifyError(RuntimeError):
    """Why the engine has not checked the plan, or what it refuses in it; one line."""


def ask(made: Plan, found: GgufSet, heads: Sequence[bytes], where: str, inventory: str, overcommit: bool) -> Buffers:
    """The buffers that an engine allocates for a plan, without the weights.

    + heads: the bytes of the model's headers
    + where: path of a llama-server on this computer, or a host of the inventory
    + overcommit: whether vm.overcommit_memory may be set meanwhile, for a machine with less memory than the model

    Raises VerifyError.
    """
    is_here = where.startswith("/")
    with tempfile.TemporaryDirectory(prefix="moehost-verify-") as name:
        folder = Path(name)
        headers = folder / "headers.bin"
        headers.write_bytes(b"".join(heads))
        job = Job(
            engine=where if is_here else NODE_ENGINE,
            argv=tuple(made.arguments),
            env=made.placement.env,
            shards=shards(found),
            headers=str(headers) if is_here else "headers.bin",
            folder=None if is_here else ".",
            timeout_s=TIMEOUT_S,
            overcommit=overcommit,
        )
        (folder / "job.json").write_text(job.to_json())
        text = _here(folder) if is_here else _there(folder, where, inventory)
    result = Result.parse(text)
    if result.refusal:
        raise VerifyError(result.refusal)
    return dry_run.parse(result.log)


def _here(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "moehost.rehearse", str(folder / "job.json")], capture_output=True, text=True
    )
    if not done.stdout.strip():
        raise VerifyError(reason(done.stderr))
    return done.stdout


def _there(folder: Path, host: str, inventory: str) -> str:
    done = pyinfra(inventory, "--limit", host, DEPLOY, "--data", f"folder={folder}", "-y")
    result = folder / "result.json"
    if not result.exists() or not result.read_text().strip():
        raise VerifyError(f"@{host}: {reason(done.stderr)}")
    return result.read_text()
