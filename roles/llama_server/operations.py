"""How a service comes to run as described, and how one is taken away."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from moehost import engine
from moehost.settings import Service
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.facts import FileStates
from roles.llama_server.facts import (
    SERVER,
    ArgumentsProbe,
    EngineContract,
    Inputs,
    InstalledServices,
    ServiceState,
)
from roles.operations import files, refuse, render

UNITS = "/etc/systemd/system"
MIB = 1 << 20


def folder(service: str) -> str:
    """Where a service's plan and keys are."""
    return f"/etc/moehost/{service}"


def unit_text(service: Service, arguments: list[str], model_path: str, gpus: bool, generation: str) -> str:
    """The unit of a service; `generation` is what the running process is recognised by."""
    return render(
        "llama_server/llama-server.service.j2",
        service=service,
        exec_start=exec_line([SERVER, *arguments]),
        model_path=model_path,
        model_dir=model_path.rpartition("/")[0],
        folder=folder(service.name),
        programs=PROGRAMS,
        gpus=gpus,
        generation=generation,
    )


@operation()
def api_keys(service: str, keys: str | None) -> Iterator[Any]:
    """
    Have a key file for a service: the owner's, or one key made on the node, which never leaves it.

    + service: name of the service
    + keys: text of the key file, None to make one
    """
    path = f"{folder(service)}/api-keys"
    if keys is not None:
        yield from files._inner(contents={path: keys}, mode="600")
    elif host.get_fact(FileStates, paths=[path]):
        host.noop("the service has a key")
    else:
        new = QuoteString(f"{path}.new")
        yield StringCommand(
            "mkdir -p", QuoteString(folder(service)), "&& umask 077",
            "&& head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' >", new,
            "&& sync", new, "&& mv", new, QuoteString(path),
        )  # fmt: skip


@operation()
def running(service: Service, index: int, offload: engine.Offload, model_path: str) -> Iterator[Any]:
    """
    Have a service run as described, and wait until it has answered.

    Its command line is checked against the engine before the service that runs is touched. It restarts when what
    it was started with (unit, engine, model, keys) is not what it should be, however the last run ended.

    + service: the settings of the service
    + index: where the service stands in the settings, for messages
    + offload: where the model's tensors live
    + model_path: first file of the model
    """
    where = f"services[{index}]"
    contract = host.get_fact(EngineContract)
    state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
    keys = f"{folder(service.name)}/api-keys"
    inputs = host.get_fact(Inputs, model_dir=model_path.rpartition("/")[0], keys=keys)
    dialect = json.loads(contract["build"])["dialect"] if contract else "llama.cpp"
    arguments = engine.command_line(service, model_path, offload, dialect)
    gpus = offload.gpu_layers is not None
    blank = unit_text(service, arguments, model_path, gpus, generation="")
    generation = hashlib.sha256(f"{blank}\n{inputs}".encode()).hexdigest()[:16]

    if state.get("generation") != generation and (problem := _problem(where, service, arguments, contract, state)):
        yield refuse(problem)
        return

    plan = {"engine": engine.Version.parse(contract.get("version", "")).text, "argv": arguments, "env": {}}
    changes = [
        *files._inner(
            contents={
                f"{UNITS}/{service.unit}": unit_text(service, arguments, model_path, gpus, generation),
                f"{folder(service.name)}/plan.json": json.dumps(plan, indent=2) + "\n",
            }
        )
    ]
    yield from changes
    # From here the facts are read after the commands above have run.
    state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
    if state.get("NeedDaemonReload") == "yes":
        yield "systemctl daemon-reload"
    if state.get("UnitFileState") != "enabled":
        yield StringCommand("systemctl enable --quiet", QuoteString(service.unit))
    if state.get("generation") != generation:
        # A unit that failed too often is not started again without reset-failed.
        yield StringCommand(
            "systemctl reset-failed", QuoteString(service.unit), "2>/dev/null;",
            "systemctl restart --no-block", QuoteString(service.unit),
        )  # fmt: skip
    if state.get("generation") != generation or state.get("ActiveState") != "active":
        yield FunctionCommand(_wait_until_ready, (service, generation), {})
    elif not changes:
        host.noop(f"{service.unit} runs as described")


def _problem(
    where: str, service: Service, arguments: list[str], contract: dict[str, str], state: dict[str, Any]
) -> str | None:
    """Why this service can't be started now, or None; nothing is known yet where no engine is installed."""
    if holder := state.get("port_holder"):
        name, _, pid = holder.replace('"', "").partition(",pid=")
        return f"{where}.port: {service.port} is taken by {name} (pid {pid}); choose another or stop that program"
    if not contract:
        return None
    build = json.loads(contract["build"])
    dialect = build["dialect"]
    version = engine.Version.parse(contract["version"]).text
    if unknown := engine.unknown_flags(arguments, contract["help"], dialect):
        return f"{where}: {dialect} {version} does not know {', '.join(unknown)}; see server_args"
    said = host.get_fact(ArgumentsProbe, arguments=engine.probe_arguments(arguments))
    if refusal := engine.refusal(said):
        return f"{where}: {dialect} {version} refuses these arguments: {refusal}"
    return None


def _wait_until_ready(state: Any, host: Any, service: Service, generation: str) -> bool:
    """Watch a start, with a line whenever there is something to say; False with the journal's end if it fails.

    Just after the restart was asked for, the process before it may still be the active one.
    """
    started, said, unit = time.monotonic(), "", {}
    while (elapsed_s := time.monotonic() - started) < service.start_timeout_s:
        unit = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        if unit.get("ActiveState") == "active" and unit.get("generation") == generation:
            host.log(f"{service.name} is ready after {elapsed_s:.0f} s", logger.info)
            return True
        if unit.get("ActiveState") == "failed" or unit.get("SubState") == "auto-restart":
            break
        memory = unit.get("MemoryCurrent", "")
        doing = f"{service.name}: {unit.get('SubState', 'starting')}"
        doing += f", {int(memory) / MIB / 1024:.1f} GiB in memory" if memory.isdigit() else ""
        if doing != said or elapsed_s % 30 < 1:
            host.log(f"{doing}, {elapsed_s:.0f} s", logger.info)
            said = doing
        time.sleep(1)
    reason = f"{unit.get('ActiveState')}, {unit.get('Result')}"
    host.log_styled(f"{service.unit} does not start ({reason}); its last words:", fg="red", log_func=logger.error)
    _, journal = host.run_shell_command(
        StringCommand("journalctl --no-pager --output cat --lines 20 --unit", QuoteString(service.unit))
    )
    for line in journal.stdout_lines:
        host.log(f"    {line}", logger.error)
    return False


@operation()
def gone(services: list[str]) -> Iterator[Any]:
    """
    Take away the services that are no longer described; their models and keys stay.

    + services: names of the services that stay
    """
    stay = {f"llama-server-{name}.service" for name in services}
    leave = [unit for unit in host.get_fact(InstalledServices) if unit not in stay]
    for unit in leave:
        yield StringCommand("systemctl disable --now --quiet", QuoteString(unit))
        yield StringCommand("rm", QuoteString(f"{UNITS}/{unit}"), "&& systemctl daemon-reload")
    if not leave:
        host.noop("no service is left over")
