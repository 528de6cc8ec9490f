"""A deploy of its own: the node reads its models and compares them with their checksums.

    pyinfra INVENTORY --limit HOST roles/models/verify.py --data x_folder=FOLDER [--data x_model=MODEL] -y

FOLDER on this computer gets `result.json`; `moehost models verify` makes it.
"""

import time
from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FileDownloadCommand, FunctionCommand, StringCommand, operation

from moehost import confined
from moehost.unit import exec_line
from roles.models.facts import Fetch
from roles.models.verification import LIBRARY, command
from roles.node import this_node
from roles.operations import last_words, shell, unit_options

UNIT = "moehost-verify-now.service"
RUN = "/run/moehost-verify-now"
GB = 1e9


@operation(is_idempotent=False)
def verified(store: str, model: str | None, folder: str) -> Iterator[Any]:
    """
    Let the node inspect its models, watch it, and bring back what was found.

    + store: the model store
    + model: name of one model, None for all
    + folder: folder on this computer for `result.json`
    """
    words = command(store, *([model] if model else []))
    more = ["RuntimeDirectory=moehost-verify-now", "RuntimeDirectoryPreserve=yes"]
    options = unit_options([*confined.inspect(store), *more])
    # One of before reads only: nothing is lost when it ends early.
    yield StringCommand(f"systemctl stop {UNIT} 2>/dev/null; rm -rf {RUN}")
    yield StringCommand(
        "systemd-run --quiet --collect", *options, f"--unit={UNIT} --setenv=PYTHONPATH={LIBRARY}",
        "--setenv=PYTHONDONTWRITEBYTECODE=1", exec_line(words),
    )  # fmt: skip
    yield FunctionCommand(_watch, (), {})
    yield FileDownloadCommand(
        f"{RUN}/result.json", f"{folder}/result.json", remote_temp_filename=host.get_temp_filename(RUN)
    )
    yield StringCommand(f"rm -rf {RUN}")


def _watch(state: Any, host: Any) -> bool:
    """Follow an inspection to its end, with a line every few seconds; False with its last words without a result."""
    said = 0.0
    while True:
        found = host.get_fact(Fetch, unit=UNIT, job="/dev/null", progress=f"{RUN}/progress.json")
        progress = found["progress"]
        if not found["active"]:
            break
        if time.monotonic() - said > 5 and progress.get("total_bytes"):
            said, rate = time.monotonic(), progress["rate_bytes_s"]
            line = f"{progress['done_bytes'] / GB:.2f} of {progress['total_bytes'] / GB:.2f} GB read"
            if rate:
                left_s = (progress["total_bytes"] - progress["done_bytes"]) / rate
                line += f", {rate / 1e6:.0f} MB/s, {left_s / 60:.0f} min left"
            host.log(line, logger.info)
        time.sleep(0.5)
    there, _ = shell(host, StringCommand(f"test -s {RUN}/result.json"))
    if not there:
        reason = " / ".join(last_words(host, f"--unit {UNIT}", 3)) or "its unit ended without a word"
        host.log_styled(f"the models could not be inspected: {reason}", fg="red", log_func=logger.error)
    return there


if node := this_node():
    verified(
        name="Compare the models with their checksums",
        store=node.models_dir,
        model=host.data.get("x_model"),
        folder=host.data.x_folder,
    )
