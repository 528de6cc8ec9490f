"""What a node knows of its services."""

import json
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from roles.ik_llama.facts import CURRENT

SERVER = f"{CURRENT}/bin/llama-server"


class EngineContract(FactBase[dict[str, str]]):
    """The current engine in its own words: `build` (its build.json), `version` and `help`. Empty without one."""

    default = dict

    def command(self) -> str:
        # --help of ik_llama.cpp exits 1, so exit codes say nothing here.
        return (
            f"test -x {SERVER} || exit 0; cat {CURRENT}/build.json; echo '==='; "
            f"{SERVER} --version 2>&1; echo '==='; {SERVER} --help 2>&1; true"
        )

    def process(self, output: list[str]) -> dict[str, str]:
        build, _, rest = "\n".join(output).partition("\n===\n")
        version, _, text = rest.partition("\n===\n")
        return {"build": build, "version": version, "help": text}


class ModelHeaders(FactBase[list[dict[str, Any]]]):
    """The headers of a model's files as `moehost.gguf` prints them on the node; empty where they can't be read.

    + path: first file of the model
    + library: where the node has moehost's modules
    """

    default = list

    def command(self, path: str, library: str) -> StringCommand:
        return StringCommand(
            f"PYTHONPATH={library} python3 -B -m moehost.gguf", QuoteString(path), "2>/dev/null || true"
        )  # fmt: skip

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return list(json.loads("".join(output)))


class ArgumentsProbe(FactBase[str]):
    """What the current engine says when it gets these arguments; they should name no model.

    + arguments: words of the command line
    """

    default = str

    def command(self, arguments: list[str]) -> StringCommand:
        # HOME and the working directory: some engines write a log or a cache there.
        return StringCommand(
            "cd /tmp && HOME=/tmp timeout 60",
            SERVER,
            *(QuoteString(word) for word in arguments),
            "2>&1 | tail -n 700",
        )

    def process(self, output: list[str]) -> str:
        return "\n".join(output)


class Rehearsal(FactBase[dict[str, Any]]):
    """What `moehost.rehearse` prints for a job: the engine allocates the buffers of a plan and reads no weights.

    + job: the job, as JSON
    + library: where the node has moehost's modules
    """

    default = dict

    def command(self, job: str, library: str) -> StringCommand:
        return StringCommand(
            "printf %s", QuoteString(job), ">/run/moehost-rehearsal.json;",
            f"PYTHONPATH={library} python3 -B -m moehost.rehearse /run/moehost-rehearsal.json 2>/dev/null || true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output)))


class VramUsed(FactBase[list[int]]):
    """What is in use on each card, MiB."""

    default = list

    def command(self) -> str:
        return "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null || true"

    def process(self, output: list[str]) -> list[int]:
        return [int(line) for line in output]


class ServiceState(FactBase[dict[str, Any]]):
    """A unit as systemd sees it, the generation that its process was started with, and who holds its port.

    Keys of systemd (`ActiveState`, `SubState`, `Result`, `MainPID`, `NRestarts`, `MemoryCurrent`, `UnitFileState`,
    `NeedDaemonReload`), `generation`, and `port_holder` (name and pid of another process, or empty).

    + unit: name of the unit
    + port: its TCP port
    """

    default = dict
    properties = "ActiveState,SubState,Result,MainPID,NRestarts,MemoryCurrent,UnitFileState,NeedDaemonReload"

    def command(self, unit: str, port: int) -> StringCommand:
        return StringCommand(
            "command -v systemctl >/dev/null || exit 0;",
            "systemctl show --property", self.properties, QuoteString(unit), ";",
            "pid=$(systemctl show --property MainPID --value", QuoteString(unit), ");",
            "echo generation=$(tr '\\0' '\\n' 2>/dev/null </proc/$pid/environ | sed -n s/^MOEHOST_GENERATION=//p);",
            "echo port_holder=$(ss -Hltnp", QuoteString(f"sport = :{port}"),
            "2>/dev/null | grep -v \"pid=$pid,\" | grep -o '\"[^\"]*\",pid=[0-9]*' | head -n 1 || true)",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Inputs(FactBase[str]):
    """A line for each thing that a service reads only at its start: engine, model, keys.

    + model_dir: folder of the model
    + keys: file with the API keys
    """

    default = str

    def command(self, model_dir: str, keys: str) -> StringCommand:
        return StringCommand(
            "readlink", CURRENT, "; sha256sum", QuoteString(f"{model_dir}/manifest.json"),
            # Not their hash: it would stand in the environment of the process.
            "; stat -c '%i %Y %s'", QuoteString(keys), "; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> str:
        return "\n".join(output)


class InstalledServices(FactBase[list[str]]):
    """The units of llama-server that moehost has put on this node."""

    default = list

    def command(self) -> str:
        return "ls /etc/systemd/system | grep '^llama-server-.*[.]service$' || true"

    def process(self, output: list[str]) -> list[str]:
        return output
