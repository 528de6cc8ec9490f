"""A deploy of its own: the node asks its own service, and what comes of it is brought back line by line.

    pyinfra INVENTORY --limit HOST roles/bench/bench.py --data folder=FOLDER --data service=NAME -y

FOLDER on this computer holds `job.json`, and gets `answers.jsonl`; `moehost bench` makes it.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation

from moehost import confined
from moehost.bench import MODULES
from roles.operations import TEMPLATES, last_words, sent, shell, unit_options

UNIT = "moehost-bench.service"
THERE = "/run/moehost-bench"
POLL_S = 0.5


@operation(is_idempotent=False)
def benched(folder: str, service: str) -> Iterator[Any]:
    """
    Measure a service by requests that the node makes, and bring each run back as it ends.

    + folder: folder on this computer with the job
    + service: name of the service, whose key is used
    """
    # One that was left behind would disturb.
    yield StringCommand(f"systemctl stop {UNIT} 2>/dev/null; true")
    beside = {"prose.txt": TEMPLATES / "bench/prose.txt", "job.json": Path(folder, "job.json")}
    yield from sent(THERE, MODULES, beside, mode="755")
    job = json.loads(Path(folder, "job.json").read_text())
    address = urlsplit(job["url"]).hostname or ""
    properties = [*confined.bench(THERE, address), f"LoadCredential=api-keys:/etc/moehost/{service}/api-keys"]
    yield StringCommand(
        f"chmod -R a+rX {THERE} &&",
        f"systemd-run --quiet --collect --unit={UNIT}",
        *unit_options(properties),
        f"--setenv=PYTHONPATH={THERE} python3 -B -m moehost.bench {THERE}/job.json",
    )
    yield FunctionCommand(_follow, (folder,), {})
    yield StringCommand(f"rm -rf {THERE}")


def _follow(state: Any, host: Any, folder: str) -> bool:
    """Bring the lines back until there are no more; False with the reason if nothing was measured."""
    seen = 0
    with Path(folder, "answers.jsonl").open("a") as answers:
        while True:
            # In this order, so that nothing is written after the last look.
            ok, output = shell(
                host,
                StringCommand(
                    f"systemctl is-active {UNIT} || true; tail -n +{seen + 1} {THERE}/answers.jsonl 2>/dev/null; true"
                ),
            )
            if not ok:
                return False
            state_now, *lines = output.stdout_lines
            seen += len(lines)
            answers.writelines(f"{each}\n" for each in lines)
            answers.flush()
            if state_now not in ("active", "activating"):
                break
            time.sleep(POLL_S)
    if not seen:
        host.log_styled(
            " / ".join(last_words(host, f"--unit {UNIT}", 3)) or "its unit ended without a word", fg="red"
        )
    return bool(seen)


benched(name="Measure the service", folder=host.data.folder, service=host.data.service)
