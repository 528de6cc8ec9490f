"""How a service comes to run as described, and how one is taken away."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.facts.files import FileContents

from moehost import engine
from moehost.gguf import GgufSet, Header
from moehost.hardware import node_from_facts
from moehost.plan import REFUSALS, Plan, differences, make
from moehost.settings import Node, Service
from moehost.speed import Constants
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.facts import FileStates, Machine
from roles.llama_server import check
from roles.llama_server.facts import (
    SERVER,
    ArgumentsProbe,
    EngineContract,
    Inputs,
    InstalledServices,
    ModelHeaders,
    ServiceState,
)
from roles.models.facts import StoredModel
from roles.models.operations import LIBRARY
from roles.operations import files, refuse, render

UNITS = "/etc/systemd/system"
MIB = 1 << 20


def folder(service: str) -> str:
    """Where a service's plan and keys are."""
    return f"/etc/moehost/{service}"


def unit_text(service: Service, plan: Plan, model_path: str, generation: str) -> str:
    """The unit of a service; `generation` is what the running process is recognised by."""
    placement = plan.placement
    return render(
        "llama_server/llama-server.service.j2",
        service=service,
        exec_start=exec_line([SERVER, *plan.arguments]),
        environment=placement.env,
        model_path=model_path,
        model_dir=model_path.rpartition("/")[0],
        host_mib=placement.host_mib,
        warm_up_tokens=placement.offload.warm_up_tokens,
        folder=folder(service.name),
        programs=PROGRAMS,
        gpus=len(plan.node.gpus),
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
        return
    found = host.get_fact(FileStates, paths=[path]).get(path)
    if found and found[1:] != ["600", "root:root"]:
        yield StringCommand("chmod 600", QuoteString(path), "&& chown root:root", QuoteString(path))
    elif found:
        host.noop("the service has a key")
    else:
        new = QuoteString(f"{path}.new")
        yield StringCommand(
            "mkdir -p", QuoteString(folder(service)), "&& umask 077",
            "&& head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' >", new,
            "&& sync", new, "&& mv", new, QuoteString(path),
        )  # fmt: skip


@operation()
def running(node: Node, service: Service, index: int, constants: Constants) -> Iterator[Any]:
    """
    Have a service run as planned for this node, and wait until it has answered.

    Its command line is checked against the engine before the service that runs is touched. It restarts when what
    it was started with (unit, engine, model, keys) is not what it should be, however the last run ended.

    + node: the settings of the node
    + service: the settings of the service
    + index: where the service stands in the settings, for messages
    + constants: of the speed model
    """
    where = f"services[{index}]"
    model_dir = f"{node.models_dir}/{service.model.name}"
    contract = host.get_fact(EngineContract)
    manifest = host.get_fact(StoredModel, folder=model_dir)
    if not contract or not manifest:
        # Only the plan of a deploy comes here: the steps before this one make both.
        yield StringCommand("test -e", SERVER, "-a -e", QuoteString(f"{model_dir}/manifest.json"))
        return
    dialect = json.loads(contract["build"])["dialect"]
    model_path = f"{model_dir}/{manifest.files[0].name}"
    try:
        headers = host.get_fact(ModelHeaders, path=model_path, library=LIBRARY)
        if not headers:
            raise ValueError(f"{model_path} has no header that can be read; fetch the model again")
        machine = node_from_facts(**host.get_fact(Machine))
        found = GgufSet(tuple(Header.from_json(each) for each in headers))
        state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        plan = make(service, model_path, found, machine, dialect, constants)
        tried = _tried(service, plan, contract, dialect, state)
        if tried:
            margins = tuple(tried["margins_mib"])
            plan = make(service, model_path, found, machine, dialect, constants, margins)
    except REFUSALS as reason:
        yield refuse(f"{where}: {reason}")
        return

    inputs = host.get_fact(Inputs, model_dir=model_dir, keys=f"{folder(service.name)}/api-keys")
    blank = unit_text(service, plan, model_path, generation="")
    generation = hashlib.sha256(f"{blank}\n{inputs}".encode()).hexdigest()[:16]
    if state.get("generation") != generation and (problem := _problem(where, service, plan, contract, state)):
        yield refuse(problem)
        return

    version = engine.Version.parse(contract["version"]).text
    plan_path, wanted = f"{folder(service.name)}/plan.json", plan.to_json(f"{dialect} {version}")
    contents = {
        f"{UNITS}/{service.unit}": unit_text(service, plan, model_path, generation),
        plan_path: json.dumps(wanted, indent=2) + "\n",
    }
    if tried:
        contents[f"{folder(service.name)}/rehearsal.json"] = json.dumps(tried, indent=2) + "\n"
    changes = list(files._inner(contents=contents))
    if changes:
        _tell(service.name, "\n".join(host.get_fact(FileContents, path=plan_path) or []), wanted)
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
        yield FunctionCommand(_wait_until_ready, (service, generation, plan), {})
    elif not changes:
        host.noop(f"{service.unit} runs as planned")


def _tried(
    service: Service, plan: Plan, contract: dict[str, str], dialect: str, state: dict[str, Any]
) -> dict[str, Any] | None:
    """The record of the engine's own check of a plan with cards: the one that is kept, or a new one.

    Only ik_llama.cpp can try a plan, and only while no server of this service holds the cards; without a record the
    plan stands as the ledger has it.
    """
    if dialect != "ik" or not plan.node.gpus:
        return None
    key = check.key(plan, contract["build"])
    kept = "\n".join(host.get_fact(FileContents, path=f"{folder(service.name)}/rehearsal.json") or [])
    try:
        record = json.loads(kept) if kept else {}
    except ValueError:
        record = {}
    if record.get("key") == key:
        return dict(record)
    if state.get("MainPID") not in (None, "0"):
        logger.info("[%s] %s: holds the cards, so the new plan is not tried before", host.name, service.name)
        return None
    return check.rehearsal(plan, key)


def _tell(name: str, before: str, after: dict[str, Any]) -> None:
    """Say what is new in a plan, so that a card that is missing does not pass for an ordinary restart."""
    try:
        lines = differences(json.loads(before), after) if before else iter(())
    except ValueError:
        lines = iter(["the plan before can't be read"])
    for line in [*lines, *(f"warning: {warning}" for warning in after["warnings"])]:
        logger.info("[%s] %s: %s", host.name, name, line)


def _problem(where: str, service: Service, plan: Plan, contract: dict[str, str], state: dict[str, Any]) -> str | None:
    """Why this service can't be started now, or None."""
    if holder := state.get("port_holder"):
        name, _, pid = holder.replace('"', "").partition(",pid=")
        return f"{where}.port: {service.port} is taken by {name} (pid {pid}); choose another or stop that program"
    dialect = json.loads(contract["build"])["dialect"]
    version = engine.Version.parse(contract["version"]).text
    if unknown := engine.unknown_flags(plan.arguments, contract["help"], dialect):
        return f"{where}: {dialect} {version} does not know {', '.join(unknown)}; see server_args"
    said = host.get_fact(ArgumentsProbe, arguments=engine.probe_arguments(plan.arguments))
    if refusal := engine.refusal(said):
        return f"{where}: {dialect} {version} refuses these arguments: {refusal}"
    return None


def _wait_until_ready(state: Any, host: Any, service: Service, generation: str, plan: Plan) -> bool:
    """Watch a start, with a line whenever there is something to say; False with the journal's end if it fails.

    Just after the restart was asked for, the process before it may still be the active one.
    """
    started, said, unit = time.monotonic(), "", {}
    while (elapsed_s := time.monotonic() - started) < service.start_timeout_s:
        unit = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        if unit.get("ActiveState") == "active" and unit.get("generation") == generation:
            host.log(f"{service.name} is ready after {elapsed_s:.0f} s", logger.info)
            return _cards_are_used(host, service, plan)
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


def _cards_are_used(host: Any, service: Service, plan: Plan) -> bool:
    """Compare what the cards hold with the ledger, keep it in `measured.json`; False if the engine missed them."""
    if not plan.node.gpus:
        return True
    measured, problem = check.in_use(plan)
    for device, sizes in measured.items():
        host.log(f"{device}: {sizes['used_mib']} MiB in use, {sizes['ledger_mib']} MiB in the ledger", logger.info)
    path = QuoteString(f"{folder(service.name)}/measured.json")
    host.run_shell_command(StringCommand("cat >", path), _stdin=json.dumps(measured, indent=2) + "\n")
    if problem:
        host.log_styled(problem, fg="red", log_func=logger.error)
    return problem is None


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
