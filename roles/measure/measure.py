"""A deploy of its own: the node measures itself, and keeps what it finds in measured.json.

    pyinfra INVENTORY --limit HOST roles/measure/measure.py --data folder=FOLDER -y

FOLDER on this computer holds `job.json`, and gets `result.json`; `moehost measure` makes it. With `--data
x_compiler=1`, gcc is installed where no compiler is.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileDownloadCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from moehost.measure import MODULES
from roles.ik_llama.operations import suite_in_use
from roles.operations import TEMPLATES, packages, sent

THERE = "/var/tmp/moehost-measure"  # noqa: S108  (made anew with the permissions of its owner)
NO_PYTHON = "there is no python3; deploy first (pyinfra inventory deploy.py)"


@operation(is_idempotent=False)
def measured(folder: str) -> Iterator[PyinfraCommand]:
    """
    Measure the node, and bring back what was found.

    + folder: folder on this computer with the job
    """
    beside = {"triad.c": TEMPLATES / "measure/triad.c", "job.json": Path(folder, "job.json")}
    # Programs of another account run in a folder in it, and none but root lists it.
    yield from sent(THERE, MODULES, beside, mode="711")
    # What it has to say stands in its result, be it good or bad.
    yield StringCommand(
        f"cd {THERE} && if command -v python3 >/dev/null; then",
        f"PYTHONPATH={THERE} python3 -B -m moehost.measure job.json >result.json; true;",
        "else", "echo", QuoteString(json.dumps({"refusal": NO_PYTHON})), ">result.json; fi",
    )  # fmt: skip
    yield FileDownloadCommand(
        f"{THERE}/result.json", str(Path(folder, "result.json")), remote_temp_filename=host.get_temp_filename(THERE)
    )
    yield StringCommand(f"rm -rf {THERE}")


if host.data.get("x_compiler"):
    packages(name="Install a C compiler", wanted=["gcc", "libc6-dev"], release=suite_in_use())
measured(name="Measure the node", folder=host.data.folder)
