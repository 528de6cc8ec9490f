"""How the services come to another release of the engine, all of them or none."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation

from moehost import confined, switch
from moehost.settings import Node
from moehost.speed import Constants
from roles.ik_llama.facts import ENGINE, Releases
from roles.llama_server.facts import Switch
from roles.llama_server.units import UNITS, folder
from roles.llama_server.wanted import NotYet, Refused, Wanted, wanted
from roles.operations import refuse, unit_options

UNIT = "moehost-switch.service"
# Below /run: after a reboot there is no switch to go on with.
FOLDER = "/run/moehost-switch"
# Units and Quadlets, plans, and the links to releases.
WRITTEN = [str(switch.TRIALS), UNITS, "-/etc/containers", "/etc/moehost", ENGINE]


@operation()
def switched(node: Node, constants: Constants) -> Iterator[Any]:
    """
    Have the release that is next be the current one: all services have answered with it, or all stay with the old.

    Nothing is touched before the command line of every service is known to the new release. A service is then
    restarted with it in a moment without requests, and must answer a fixed prompt at a fair share of the speed that
    it had. The node does this by itself, so it comes to its end if the deploy is cut off; the next one watches it.

    + node: the settings of the node
    + constants: of the speed model
    """
    there = host.get_fact(Releases)
    if there["next"] == there["current"]:
        host.noop(f"{there['current'] or 'no release'} is current and next")
        return
    if host.get_fact(Switch, folder=FOLDER, unit=UNIT).get("active"):
        # Begun by a deploy that was cut off, or by another one: it is never stopped in the middle.
        yield FunctionCommand(_watch, (None,), {})
        there = host.get_fact(Releases)
        if there["next"] == there["current"]:
            return
    try:
        goals = [wanted(node, each, index, constants, "next") for index, each in enumerate(node.services)]
    except NotYet as test:
        yield StringCommand(str(test))
        return
    except Refused as reason:
        yield refuse(f"{there['next']} does not become current, {there['current']} serves on: {reason}")
        return
    job = switch.Job(
        engine=ENGINE,
        old=there["current"],
        new=there["next"],
        drain_s=node.engine.drain_s,
        canary_share=node.engine.canary_share,
        services=[_service(goal) for goal in goals],
    )
    yield StringCommand(
        "rm -rf", FOLDER, "&& mkdir -m 700", FOLDER, "&& cat >", f"{FOLDER}/switch.py",
        _stdin=Path(switch.__file__).read_text(),
    )  # fmt: skip
    yield StringCommand("cat >", f"{FOLDER}/job.json", _stdin=json.dumps(asdict(job)))
    yield StringCommand(
        # What it may write is there, or is no folder of its sandbox.
        f"mkdir -p {switch.TRIALS}; systemctl reset-failed {UNIT} 2>/dev/null;",
        f"systemd-run --quiet --collect --unit={UNIT} --description='Switch to the engine {job.new}'",
        *unit_options(confined.switch(FOLDER, WRITTEN, [each.url_host for each in node.services])),
        f"python3 -B {FOLDER}/switch.py {FOLDER}/job.json",
    )
    yield FunctionCommand(_watch, (job.new,), {})


def _service(goal: Wanted) -> switch.Service:
    service = goal.service
    return switch.Service(
        unit=service.unit,
        address=f"{service.url_host}:{service.port}",
        keys=f"{folder(service.name)}/api-keys",
        generation=goal.generation,
        trial=goal.trial,
        contents=goal.contents,
        leftovers=goal.leftovers,
        limit_s=service.start_limit_s,
    )


def _watch(state: Any, host: Any, release: str | None) -> bool:
    """Follow a switch to its end, with each line that it says; False with the reason if the old release is back.

    + release: the one that is switched to; None for a switch of another deploy, whose end is no failure of this one
    """
    said = 0
    while True:
        progress = host.get_fact(Switch, folder=FOLDER, unit=UNIT)
        for line in progress["lines"][said:]:
            host.log(line, logger.info)
        said = len(progress["lines"])
        if not progress["active"]:
            break
        time.sleep(0.5)
    failure = progress.get("failure") if progress["ended"] else f"it ended without a word; see journalctl -u {UNIT}"
    if failure and release:
        current = host.get_fact(Releases)["current"]
        host.log_styled(
            f"{release} does not become current, {current} serves: {failure}", fg="red", log_func=logger.error
        )
        return False
    return True
