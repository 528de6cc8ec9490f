"""A deploy of its own, which changes nothing: the node's engine tries a plan without the weights.

    pyinfra INVENTORY --limit HOST roles/llama_server/rehearse.py --data folder=FOLDER -y

FOLDER on this computer holds `job.json` and `headers.bin`, and gets `result.json`; `moehost plan --verify` makes it.
"""

from collections.abc import Iterator
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileDownloadCommand, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from moehost.rehearse import MODULES
from roles.operations import sent

THERE = "/var/tmp/moehost-rehearsal"  # noqa: S108  (made anew with the permissions of its owner)


@operation(is_idempotent=False)
def rehearsed(folder: str) -> Iterator[PyinfraCommand]:
    """
    Let the node's engine allocate the buffers of a plan, and bring back what it says.

    + folder: folder on this computer with the job and the model's headers
    """
    yield from sent(THERE, MODULES, {each: Path(folder, each) for each in ("job.json", "headers.bin")})
    # What it has to say stands in its result, be it good or bad.
    yield StringCommand(
        f"cd {THERE} && PYTHONPATH={THERE} python3 -B -m moehost.rehearse job.json >result.json; true"
    )
    yield FileDownloadCommand(
        f"{THERE}/result.json", str(Path(folder, "result.json")), remote_temp_filename=host.get_temp_filename(THERE)
    )
    yield StringCommand(f"rm -rf {THERE}")


rehearsed(name="Let the engine try the plan", folder=host.data.folder)
