"""What a node knows of a search for the fastest configuration."""

from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from roles.facts import from_json


class Programs(FactBase[str]):
    """The folder with llama-server and llama-bench of a release, links followed; empty where one is missing.

    + engine: folder of the release
    """

    default = str

    def command(self, engine: str) -> StringCommand:
        # A package has its programs elsewhere, and only llama-server is linked.
        return StringCommand(
            "folder=$(dirname \"$(readlink -f", QuoteString(f"{engine}/bin/llama-server"), ")\");",
            "test -x \"$folder/llama-server\" && test -x \"$folder/llama-bench\" && echo \"$folder\"; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> str:
        return output[0] if output else ""


class Session(FactBase[dict[str, Any]]):
    """How the unit is getting on that launches engines: `active`, and what came of a job, if anything (`ended`).

    Asking keeps it alive.

    + folder: where its jobs are
    + unit: name of the unit
    + number: of the job
    """

    @staticmethod
    def default() -> dict[str, Any]:
        return {"active": False, "ended": None}

    def command(self, folder: str, unit: str, number: int) -> StringCommand:
        return StringCommand(
            "touch -c", QuoteString(f"{folder}/alive"), "; systemctl is-active", QuoteString(unit), ";",
            "cat", QuoteString(f"{folder}/results/{number}.json"), "2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        return {"active": output[0] in ("active", "activating"), "ended": from_json("".join(output[1:]), list)}
