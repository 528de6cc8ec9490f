"""How a service comes to run as described, and how one is taken away."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.facts.files import FileContents

from moehost.plan import Plan, differences
from moehost.process import Process
from moehost.settings import Node, Service
from moehost.speed import Constants
from roles.facts import FileStates
from roles.llama_server import check
from roles.llama_server.facts import InstalledServices, ServerProcess, ServiceState, UsableKeys
from roles.llama_server.units import folder, paths
from roles.llama_server.wanted import NotYet, Refused, Wanted, tell, wanted
from roles.operations import files, refuse, shell
from roles.rpc_worker.facts import Connected

MIB = 1 << 20


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
    if not host.get_fact(UsableKeys, path=path):
        # A file without a key, cut off or emptied, would let no start succeed.
        found = None
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
    try:
        goal = wanted(node, service, index, constants, "current")
    except NotYet as test:
        yield StringCommand(str(test))
        return
    except Refused as reason:
        yield refuse(str(reason))
        return
    changes = list(files._inner(contents=goal.contents))
    if changes:
        tell(service.name, list(_news(goal)))
    yield from changes
    leftovers = [_taken_away(path) for path in host.get_fact(FileStates, paths=goal.leftovers)]
    yield from leftovers
    # After commands have run, what was seen before them counts no more.
    is_touched = bool(changes or leftovers)
    state = host.get_fact(ServiceState, unit=service.unit, port=service.port) if is_touched else goal.state
    if state.get("NeedDaemonReload") == "yes":
        yield "systemctl daemon-reload"
    if state.get("UnitFileState") != goal.source.unit_file_state:
        # What Podman's generator makes is enabled by being there.
        yield (
            "systemctl daemon-reload"
            if goal.source.is_quadlet
            else StringCommand("systemctl enable --quiet", QuoteString(service.unit))
        )
    must_restart = state.get("generation") != goal.generation or _is_cut_off(goal, state)
    if must_restart:
        # A unit that failed too often is not started again without reset-failed.
        yield StringCommand(
            "systemctl reset-failed", QuoteString(service.unit), "2>/dev/null;",
            "systemctl restart --no-block", QuoteString(service.unit),
        )  # fmt: skip
    if must_restart or state.get("ActiveState") != "active":
        yield FunctionCommand(_wait_until_ready, (service, goal.generation, goal.plan), {})
    elif not is_touched:
        host.noop(f"{service.unit} runs as planned")


def _is_cut_off(goal: Wanted, state: dict[str, Any]) -> bool:
    """Whether a server that runs has lost a worker, which it would notice at the next request only."""
    endpoints = list(goal.plan.placement.offload.workers)
    if not endpoints or state.get("ActiveState") != "active":
        return False
    return set(host.get_fact(Connected, endpoints=endpoints)) != set(endpoints)


def _news(goal: Wanted) -> Iterator[str]:
    """What is new in a plan, so that a card that is missing does not pass for an ordinary restart."""
    before = "\n".join(host.get_fact(FileContents, path=goal.plan_path) or [])
    try:
        yield from differences(json.loads(before), goal.plan_json) if before else iter(())
    except (ValueError, TypeError, KeyError, AttributeError):
        # Whatever stands there: an exception would end the run of every host.
        yield "the plan before can't be read"
    yield from (f"warning: {warning}" for warning in goal.plan_json["warnings"])


def _wait_until_ready(state: Any, host: Any, service: Service, generation: str, plan: Plan) -> bool:
    """Watch a start, with a line whenever there is something to say; False with the journal's end if it fails.

    Just after the restart was asked for, the process before it may still be the active one.
    """
    started, said, unit = time.monotonic(), "", {}
    while (elapsed_s := time.monotonic() - started) < service.start_limit_s:
        unit = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        if unit.get("ActiveState") == "active" and unit.get("generation") == generation:
            host.log(f"{service.name} is ready after {elapsed_s:.0f} s", logger.info)
            return _memory_is_as_asked(host, service, plan) and _cards_are_used(host, service, plan)
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
    # Without Podman's own events, each of which has all labels of the image in it.
    last_words = StringCommand(
        "journalctl --no-pager --output cat --lines 60 --unit", QuoteString(service.unit),
        "| grep -v ' UTC m=+' | tail -n 20",
    )  # fmt: skip
    _, journal = shell(host, last_words)
    for line in journal.stdout_lines:
        host.log(f"    {line}", logger.error)
    return False


def _memory_is_as_asked(host: Any, service: Service, plan: Plan) -> bool:
    """Say where the server's memory lies; False if it is not spread as it should be."""
    process = Process.parse(host.get_fact(ServerProcess, unit=service.unit))
    if process is None:
        return True
    host.log(f"{service.name}: {process}", logger.info)
    for doubt in process.doubts(plan, service.has_sys_nice):
        host.log(f"{service.name}: {doubt}", logger.warning)
    if problem := process.problem(plan):
        host.log_styled(problem, fg="red", log_func=logger.error)
    return problem is None


def _cards_are_used(host: Any, service: Service, plan: Plan) -> bool:
    """Compare what the cards hold with the ledger, keep it in `measured.json`; False if the engine missed them."""
    if not plan.node.gpus:
        return True
    measured, problem = check.in_use(plan)
    for device, sizes in measured.items():
        host.log(f"{device}: {sizes['used_mib']} MiB in use, {sizes['ledger_mib']} MiB in the ledger", logger.info)
    path = QuoteString(f"{folder(service.name)}/measured.json")
    shell(host, StringCommand("cat >", path), _stdin=json.dumps(measured, indent=2) + "\n")
    if problem:
        host.log_styled(problem, fg="red", log_func=logger.error)
    return problem is None


@operation()
def gone(services: list[str]) -> Iterator[Any]:
    """
    Take away the services that are no longer described; their models and keys stay.

    + services: names of the services that stay
    """
    stay = {path for service in services for path in paths(service)}
    leave = [path for path in host.get_fact(InstalledServices) if path not in stay]
    for path in leave:
        yield StringCommand("systemctl stop", QuoteString(f"{Path(path).stem}.service"))
        yield _taken_away(path)
    if not leave:
        host.noop("no service is left over")


def _taken_away(path: str) -> StringCommand:
    """Remove a unit, or a Quadlet with what Podman keeps for it; the process goes on until it is stopped."""
    file, identity = Path(path), QuoteString(Path(path).stem)
    if file.suffix == ".container":
        before = StringCommand("podman secret rm", identity, "2>/dev/null;")
    else:
        before = StringCommand("systemctl disable --quiet", QuoteString(file.name), "&&")
    return StringCommand(before, "rm", QuoteString(path), "&& systemctl daemon-reload")
