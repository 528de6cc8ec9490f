"""What a node knows of its services."""

from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from roles.facts import Texts, from_json


class EngineContract(FactBase[dict[str, str]]):
    """Which engine there is: `release` (its name), `build` (its build.json), and what it says its `version` is.

    Empty without one.

    + engine: folder of the release
    """

    default = dict

    def command(self, engine: str) -> StringCommand:
        return StringCommand(
            "cd", QuoteString(engine), "2>/dev/null && test -x bin/llama-server || exit 0;",
            "pwd -P | sed 's,.*/,,'; echo '==='; cat build.json; echo '===';",
            "bin/llama-server --version 2>&1; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        release, build, version = ("\n".join(output).split("\n===\n", 2) + [""] * 2)[:3]
        return {"release": release, "build": build, "version": version}


class EngineHelp(FactBase[str]):
    """What an engine says of the flags that it knows.

    + engine: folder of the release
    """

    default = str

    def command(self, engine: str) -> StringCommand:
        # --help of ik_llama.cpp exits 1, so exit codes say nothing here.
        return StringCommand(QuoteString(f"{engine}/bin/llama-server"), "--help 2>&1; true")

    def process(self, output: list[str]) -> str:
        return "\n".join(output)


class ModelHeaders(FactBase[list[dict[str, Any]]]):
    """The headers of a model's files as `moehost.gguf` prints them on the node; empty where they can't be read.

    The store keeps them beside a model, so that no program has to read them again.

    + path: first file of the model
    + library: where the node has moehost's modules
    """

    default = list

    def command(self, path: str, library: str) -> StringCommand:
        return StringCommand(
            "cat", QuoteString(f"{path.rpartition('/')[0]}/headers.json"), "2>/dev/null ||",
            f"PYTHONPATH={library} python3 -B -m moehost.gguf", QuoteString(path), "2>/dev/null || true",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return from_json("".join(output), list) or []


class ArgumentsProbe(FactBase[str]):
    """What an engine says when it gets these arguments; they should name no model.

    + engine: folder of the release
    + arguments: words of the command line
    """

    default = str

    def command(self, engine: str, arguments: list[str]) -> StringCommand:
        # HOME and the working directory: some engines write a log or a cache there.
        return StringCommand(
            "cd /tmp && HOME=/tmp timeout 60",
            QuoteString(f"{engine}/bin/llama-server"),
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
        return from_json("".join(output)) or {}


class VramUsed(FactBase[list[int]]):
    """What is in use on each card, MiB."""

    default = list

    def command(self) -> str:
        return "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null || true"

    def process(self, output: list[str]) -> list[int]:
        return [int(line) for line in output]


class ServerProcess(Texts, FactBase[dict[str, str]]):
    """The process of a running server, as texts for `moehost.process.Process`; it takes seconds for 200 GB.

    + unit: name of the unit
    """

    commands = {
        "smaps": "cat /proc/$pid/smaps_rollup",
        "numa_maps": "cat /proc/$pid/numa_maps",
        "status": "grep CapEff /proc/$pid/status",
        "namespaces": "readlink /proc/1/ns/user /proc/$pid/ns/user",
        "nice": "ps -o ni= -p $pid",
    }

    def command(self, unit: str) -> StringCommand:  # type: ignore[override]
        # The main process of a container is Podman's monitor, and the server its child.
        return StringCommand(
            "pid=$(systemctl show --property MainPID --value", QuoteString(unit), ");",
            '[ "$(cat /proc/$pid/comm)" != conmon ] || pid=$(pgrep -P "$pid" | head -n 1);',
            super().command(),
        )  # fmt: skip


class ServiceState(FactBase[dict[str, Any]]):
    """A unit as systemd sees it, the generation that its process was started with, and who holds its port.

    A process of the unit's own, in a container for instance, is no other.

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
            "said=$(systemctl show --property", self.properties, QuoteString(unit), "); echo \"$said\";",
            "pid=$(echo \"$said\" | sed -n s/^MainPID=//p);",
            # The main process of a container is Podman's monitor, and the server its child.
            "echo generation=$(for each in $pid $(pgrep -P $pid); do",
            "tr '\\0' '\\n' 2>/dev/null </proc/$each/environ; done | sed -n s/^MOEHOST_GENERATION=//p | head -n 1);",
            "echo port_holder=$(ss -Hltnp", QuoteString(f"sport = :{port}"),
            "2>/dev/null | grep -v \"pid=$pid,\" | grep -o '\"[^\"]*\",pid=[0-9]*' | while read -r holder; do",
            "grep -qF", QuoteString(f"/{unit}"), "/proc/${holder##*=}/cgroup || { echo \"$holder\"; break; }; done)",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Inputs(FactBase[str]):
    """A line for each thing that a service reads only at its start: engine, model, keys.

    + engine: link to the release
    + model_dir: folder of the model
    + keys: file with the API keys
    """

    default = str

    def command(self, engine: str, model_dir: str, keys: str) -> StringCommand:
        return StringCommand(
            "readlink", QuoteString(engine), "; sha256sum", QuoteString(f"{model_dir}/manifest.json"),
            # When a file was damaged is not known: who was started before it was mended may have read rubbish.
            "; cat", QuoteString(f"{model_dir}/mended.json"), "2>/dev/null",
            # Not their hash: it would stand in the environment of the process.
            "; stat -c '%i %Y %s'", QuoteString(keys), "; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> str:
        return "\n".join(output)


class UsableKeys(FactBase[int]):
    """How many keys are in a key file, as `preflight` counts: lines that are not empty and no comment.

    + path: path of the file
    """

    default = int

    def command(self, path: str) -> StringCommand:
        return StringCommand("grep -c '^[^#]'", QuoteString(path), "2>/dev/null || true")

    def process(self, output: list[str]) -> int:
        return int("".join(output) or 0)


class InstalledServices(FactBase[list[str]]):
    """The paths of the units and Quadlets of llama-server that moehost has put on this node."""

    default = list

    def command(self) -> str:
        return (
            "ls -d /etc/systemd/system/llama-server-*.service /etc/containers/systemd/llama-server-*.container "
            "2>/dev/null || true"
        )

    def process(self, output: list[str]) -> list[str]:
        return output


class Containers(FactBase[dict[str, str]]):
    """What a node has for a container: `podman` (its version) and `image` (the image's id), empty where absent.

    + image: name of the image
    """

    @staticmethod
    def default() -> dict[str, str]:
        return {"podman": "", "image": ""}

    def command(self, image: str) -> StringCommand:
        return StringCommand(
            "echo podman=$(podman --version 2>/dev/null);",
            "echo image=$(podman image inspect --format '{{.Id}}'", QuoteString(image), "2>/dev/null)",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Generated(FactBase[dict[str, str]]):
    """What Podman's own generator makes of a Quadlet: `unit` (empty where it refuses it), and what it `said`.

    + quadlet: text of the file
    + unit: name of the unit that comes out
    """

    @staticmethod
    def default() -> dict[str, str]:
        return {"unit": "", "said": ""}

    def command(self, quadlet: str, unit: str) -> StringCommand:
        file = f"{unit.removesuffix('.service')}.container"
        return StringCommand(
            "cd $(mktemp -d) && printf %s", QuoteString(quadlet), ">", QuoteString(file),
            "&& QUADLET_UNIT_DIRS=$PWD /usr/lib/systemd/system-generators/podman-system-generator --dryrun",
            ">unit 2>said; cat unit; echo; echo ===; cat said; rm -r \"$PWD\"",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        unit, _, said = "\n".join(output).partition("\n===\n")
        # A heading with the unit's name comes first.
        return {"unit": unit.partition("---\n")[2].strip() + "\n" if "---\n" in unit else "", "said": said}


class Switch(FactBase[dict[str, Any]]):
    """How a switch of engines is getting on: `active`, the lines it said (`lines`), `ended`, `failure`.

    + folder: where its job is
    + unit: name of its unit
    """

    default = dict

    def command(self, folder: str, unit: str) -> StringCommand:
        return StringCommand(
            "systemctl is-active", QuoteString(unit), ";",
            "cat", QuoteString(f"{folder}/progress.json"), "2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        progress = from_json("".join(output[1:])) or {}
        return {"active": output[0] in ("active", "activating"), "lines": [], "ended": False, **progress}
