"""How a search is made on a node: its program, its unit, a job for each probe."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.api import FunctionCommand, StringCommand, operation

from moehost import confined, launch, launches, probes
from moehost.measured import disk_gb_s
from moehost.settings import Node
from moehost.space import Order, Space
from moehost.switch import Server
from moehost.tune import Probe, follow
from roles.llama_server.facts import ServiceState
from roles.llama_server.units import folder as service_folder
from roles.operations import last_words, render, sent, shell, unit_options
from roles.tune.facts import Session

UNIT = "moehost-tune.service"
# Below /run: after a reboot the service starts by itself, and there is nothing to go on with.
FOLDER = "/run/moehost-tune"
USER = "moehost"
# The computer that asks looks several times a second; one that was closed does not.
SILENCE_S = 60.0
POLL_S = 0.3


@operation(is_idempotent=False)
def tuned(node: Node, folder: str) -> Iterator[Any]:
    """
    Search for the fastest configuration of a service, which stands still meanwhile.

    The node restores it by itself, however this ends.

    + node: the settings of the node
    + folder: folder on this computer with `order.json`, `found.json`, and the probes so far
    """
    where = Path(folder)
    data, found = (json.loads((where / f"{each}.json").read_text()) for each in ("order", "found"))
    order = Order(**data)
    space = Space.of(order, node, found)
    service = space.service
    server = Server(service.unit, f"{service.url_host}:{service.port}", f"{service_folder(service.name)}/api-keys")
    task = launch.Task(server, USER, node.engine.drain_s, SILENCE_S)

    yield from sent(FOLDER, launch.MODULES, {})
    yield StringCommand(f"mkdir -m 700 {FOLDER}/jobs {FOLDER}/results")
    yield StringCommand("cat >", f"{FOLDER}/task.json", _stdin=json.dumps(asdict(task)))
    yield StringCommand("cat >", f"{FOLDER}/restore.sh", _stdin=render("tune/restore.j2"))
    gb_s = disk_gb_s(found["machine"]["measured"])
    limit_s = 3600 + 4 * launches.expected_s(space, gb_s)
    sandbox = confined.tune(FOLDER, service.url_host, has_cards=bool(space.node.gpus))
    options = unit_options([*sandbox, *_properties(service.memory_max, space, limit_s)])
    yield StringCommand(
        f"touch {FOLDER}/alive; systemctl reset-failed {UNIT} 2>/dev/null;",
        f"systemd-run --quiet --collect --unit={UNIT} --description='Search for the fastest configuration'",
        f"--setenv=PYTHONPATH={FOLDER} --setenv=PYTHONDONTWRITEBYTECODE=1",
        *options, "python3 -m moehost.launch", FOLDER,
    )  # fmt: skip
    yield FunctionCommand(_search, (space, where, found, gb_s), {})


def _properties(memory_max: str, space: Space, limit_s: float) -> Iterator[str]:
    yield f"ExecStopPost=+/bin/sh {FOLDER}/restore.sh {FOLDER}"
    yield f"RuntimeMaxSec={limit_s:.0f}"
    yield "TimeoutStopSec=30"
    # What the service itself may take; an engine that wants more ends alone.
    yield from (f"MemoryMax={memory_max}", "MemorySwapMax=0", "OOMPolicy=continue", "OOMScoreAdjust=1000")
    # A dump of the model's size would take minutes.
    yield from ("LimitCORE=0", "LimitMEMLOCK=infinity", "Nice=-5")
    if space.plan(space.current).placement.is_interleaved:
        yield from ("NUMAPolicy=interleave", "NUMAMask=all")


def _search(state: Any, host: Any, space: Space, folder: Path, found: dict[str, Any], gb_s: float | None) -> bool:
    """Ask for what comes next, have it launched, and keep what came of it, until the search ends."""
    file = folder / probes.FILE
    known = probes.parse(file.read_text()) if file.exists() else []
    # Without a last line that was cut off.
    file.write_text("".join(probes.line(*each) for each in known))
    while isinstance(upcoming := follow(space, known), Probe):
        number = len(known)
        runs = launches.runs(space, upcoming, number, found["programs"], gb_s)
        job = json.dumps([asdict(each) for each in runs])
        path = f"{FOLDER}/jobs/{number}.json"
        shell(host, StringCommand(f"cat >{path}.new && mv {path}.new {path}"), _stdin=job)
        while not (session := host.get_fact(Session, folder=FOLDER, unit=UNIT, number=number))["ended"]:
            if not session["active"]:
                return _lost(host)
            time.sleep(POLL_S)
        known.append((upcoming, launches.outcome(space, upcoming, session["ended"])))
        with file.open("a") as kept:
            kept.write(probes.line(*known[-1]))
    shell(host, f"touch {FOLDER}/end")
    return _restored(host, space, found["is_running"])


def _lost(host: Any) -> bool:
    words = " / ".join(last_words(host, f"_SYSTEMD_UNIT={UNIT}", 3))
    host.log_styled(f"{UNIT} ended early: {words}", fg="red", log_func=logger.error)
    return False


def _restored(host: Any, space: Space, was_running: bool) -> bool:
    """Wait until the unit has ended and the service answers, if it did before."""
    service, end_s = space.service, time.monotonic() + space.service.start_timeout_s
    while time.monotonic() < end_s:
        session = host.get_fact(ServiceState, unit=UNIT, port=service.port)
        unit = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        is_over = session.get("ActiveState") in (None, "inactive", "failed")
        if is_over and (unit.get("ActiveState") == "active" or not was_running):
            return True
        if is_over and unit.get("ActiveState") == "failed":
            break
        time.sleep(1)
    host.log_styled(f"{service.unit} does not start again; see its journal", fg="red", log_func=logger.error)
    return False
