"""The regular comparison of the models with their checksums: a timer, and a unit that reads and stops nobody."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from moehost import confined
from moehost.settings import Node
from moehost.unit import exec_line
from roles.facts import FileStates
from roles.models.facts import Inspection
from roles.operations import files, render

LIBRARY = "/usr/local/lib/moehost"
UNIT, TIMER = "moehost-verify.service", "moehost-verify.timer"
UNITS = "/etc/systemd/system"


def command(store: str, *model: str) -> list[str]:
    """The words of an inspection of all models, or of one."""
    return ["/usr/bin/python3", "-m", "moehost.inspection", store, *model]


def units(store: str, calendar: str) -> dict[str, str]:
    """The text of each of the two units, by path."""
    line = exec_line(command(store))
    values = {"store": store, "exec_start": line, "library": LIBRARY, "properties": confined.inspect(store)}
    service = render("models/moehost-verify.service.j2", **values)
    return {
        f"{UNITS}/{UNIT}": service,
        f"{UNITS}/{TIMER}": render("models/moehost-verify.timer.j2", calendar=calendar),
    }


@operation()
def inspected(node: Node) -> Iterator[Any]:
    """
    Have the node compare its models with their checksums as often as its owner wants, or not at all.

    An inspection that failed is forgotten as soon as no model of the node's is damaged any more.

    + node: the settings of the node
    """
    paths = [f"{UNITS}/{UNIT}", f"{UNITS}/{TIMER}"]
    there = host.get_fact(Inspection, store=node.models_dir)
    if node.verify_models == "off":
        left = list(host.get_fact(FileStates, paths=paths))
        if left:
            yield f"systemctl disable --quiet --now {TIMER} 2>/dev/null; true"
            yield f"systemctl reset-failed {UNIT} 2>/dev/null; true"
            yield StringCommand("rm -f", *(QuoteString(path) for path in left), "&& systemctl daemon-reload")
        else:
            host.noop("models are not inspected")
        return
    changes = list(files._inner(contents=units(node.models_dir, node.verify_models)))
    yield from changes
    if changes or there.get("reload") == "yes":
        yield "systemctl daemon-reload"
    if (there.get("enabled"), there.get("active")) != ("enabled", "active"):
        yield f"systemctl enable --quiet --now {TIMER}"
    elif changes:
        # A timer that runs goes by the calendar that it was started with.
        yield f"systemctl restart {TIMER}"
    if there.get("failed") == "failed" and there.get("damaged") == "no":
        yield f"systemctl reset-failed {UNIT}"
    elif not changes and (there.get("enabled"), there.get("active")) == ("enabled", "active"):
        host.noop(f"models are inspected {node.verify_models}")
