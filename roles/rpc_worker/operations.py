"""How a node comes to hold layers of another node's model, and how that ends."""

import hashlib
from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from moehost.engine import Dialect
from moehost.hardware import HardwareError, node_from_facts
from moehost.settings import Node
from moehost.sharing import Share
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.facts import from_json
from roles.ik_llama.facts import ENGINE, RELEASES
from roles.llama_server.facts import ServiceState
from roles.operations import files, refuse, render
from roles.rpc_worker.facts import UNITS, InstalledWorkers, Waiting, Worker

# Where the generation will stand in a unit, which is the hash of the rest.
GENERATION = "@GENERATION@"


@operation()
def working(node: Node, share: Share) -> Iterator[Any]:
    """
    Have a worker listen at its address, of the engine's release that is next, for its main node only.

    It restarts when what it was started with is not what it should be, or when a client waits behind one that is
    gone; whoever has layers in it starts anew then.

    + node: settings of this node
    + share: what it holds, and for whom
    """
    there = host.get_fact(Worker)
    if not there["release"]:
        # Planning a run that will make the engine.
        yield StringCommand(f"test -e {ENGINE}/next/bin/rpc-server")
        return
    where = f"rpc: {share.service} of {share.main}"
    build, release = from_json(there["build"]), there["release"].strip()
    if not there["program"] or not build:
        yield refuse(f"{where}: the engine {release} has no rpc-server; deploy with engine: {{'rpc': True}}")
        return
    if share.address not in there["addresses"].split():
        found = ", ".join(there["addresses"].split())
        yield refuse(f"{where}: {share.address} is no address of this node, which has {found}; correct it there")
        return
    try:
        text = unit(node, share, f"{RELEASES}/{release}", build["dialect"], Worker.machine(there))
    except HardwareError as reason:
        yield refuse(f"{where}: {reason}")
        return
    generation = hashlib.sha256(text.encode()).hexdigest()[:16]
    changes = list(files._inner(contents={f"{UNITS}/{share.unit}": text.replace(GENERATION, generation)}))
    yield from changes
    # From here the facts are read after the commands above have run.
    state, name = host.get_fact(ServiceState, unit=share.unit, port=share.port), QuoteString(share.unit)
    is_as_wished = state.get("generation") == generation and state.get("ActiveState") == "active"
    if not is_as_wished and (holder := state.get("port_holder")):
        program, _, pid = holder.replace('"', "").partition(",pid=")
        yield refuse(f"{where}: port {share.port} is taken by {program} (pid {pid}); choose another rpc.port")
        return
    if state.get("NeedDaemonReload") == "yes":
        yield "systemctl daemon-reload"
    if state.get("UnitFileState") != "enabled":
        yield StringCommand("systemctl enable --quiet", name)
    if not is_as_wished or host.get_fact(Waiting, port=share.port):
        # Returns when it listens, or with its last words.
        yield StringCommand(
            "systemctl reset-failed", name, "2>/dev/null; systemctl restart", name,
            "|| { journalctl --no-pager --output cat --lines 8 --unit", name, ">&2; exit 1; }",
        )  # fmt: skip
    elif not changes and state.get("UnitFileState") == "enabled":
        host.noop(f"{share.unit} listens at {share.address}:{share.port}")


def unit(node: Node, share: Share, engine: str, dialect: Dialect, texts: dict[str, str]) -> str:
    """
    The unit of a worker, with a word in place of what its process is recognised by.

    + engine: folder of the release
    + texts: of the fact `Machine`
    """
    machine = node_from_facts(**(texts | ({"nvidia_smi": ""} if node.gpu == "off" else {})))
    cards = len(machine.gpus) if share.memory != "ram" else 0
    words = share.command_line(dialect, cards, machine.physical_cores)
    return render(
        "rpc_worker/moehost-rpc.service.j2",
        share=share,
        exec_start=exec_line([f"{engine}/bin/rpc-server", *words]),
        generation=GENERATION,
        cards=cards,
        models_dir=node.models_dir,
        programs=PROGRAMS,
    )


@operation()
def gone(units: list[str]) -> Iterator[Any]:
    """
    Take away workers that no service of the inventory names; what they kept on the disk goes, too.

    + units: names of the units that stay
    """
    leave = [each for each in host.get_fact(InstalledWorkers) if each not in units]
    for unit in leave:
        kept = f"/var/lib/moehost-rpc/{unit.removeprefix('moehost-rpc-').removesuffix('.service')}"
        yield StringCommand("systemctl disable --quiet --now", QuoteString(unit))
        yield StringCommand(
            "rm -rf", QuoteString(f"{UNITS}/{unit}"), QuoteString(kept), "&& systemctl daemon-reload;",
            "systemctl reset-failed", QuoteString(unit), "2>/dev/null; true",
        )  # fmt: skip
    if not leave:
        host.noop("no worker is left over")
