"""How a node gets its packet filter, without locking its owner out, and how it is rid of it."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gevent import Timeout
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.connectors.util import clear_askpass_cache

from moehost import confined
from moehost.firewall import is_needed, parse, refusal, values
from moehost.settings import Node
from moehost.sharing import NOBODY, Peers
from roles.facts import FileStates
from roles.firewall.facts import NAME, PROGRAM, RULES, STATE, UNIT, Access, Filter
from roles.operations import file_state, files, packages, refuse, render, shell

# Of the time until rules go back, the part that a new connection may take.
CONNECT_SHARE = 0.7


@operation()
def filtered(node: Node, peers: Peers = NOBODY) -> Iterator[Any]:
    """
    Have the packet filter that the settings describe: a table `inet moehost` of its own, or none.

    New rules are loaded with a timer on the node that puts back what was there before. They are kept, and count for
    the next boot, only after a new connection has come through them.

    + node: settings of the node
    + peers: other nodes that the filter knows by address
    """
    there = host.get_fact(Filter)
    if not is_needed(node, peers):
        yield from _gone(there)
        return
    seen = parse(host.get_fact(Access))
    if reason := refusal(node, seen):
        yield refuse(reason)
        return
    changed = False
    for command in _installed(there):
        changed = True
        yield command
    there = host.get_fact(Filter) if changed else there
    states, rules = (
        FileStates().process(there["files"].splitlines()),
        render("firewall/rules.nft.j2", **values(node, seen, peers)),
    )
    is_kept = states.get(RULES) == file_state(rules) and not there["trying"]
    if not is_kept or there["table"] != there["kept"]:
        changed = True
        yield from _tried(rules, node.firewall.confirm_s)
    unit = dict(line.split("=", 1) for line in there["unit"].splitlines())
    if unit.get("UnitFileState") != "enabled" or unit.get("ActiveState") != "active":
        changed = True
        yield f"systemctl enable --quiet --now {NAME}"
    if not changed:
        host.noop("the packet filter is as described")


def _installed(there: dict[str, str]) -> Iterator[Any]:
    """What loads rules, tries them, and loads them at a boot."""
    if not there["nft"]:
        yield from packages._inner(wanted=["nftables"])
    unit = {UNIT: render("firewall/moehost-firewall.service.j2", nft="/usr/sbin/nft", path=RULES)}
    program = {PROGRAM: trial()}
    states = FileStates().process(there["files"].splitlines())
    if states.get(PROGRAM) != file_state(program[PROGRAM], "755"):
        yield from files._inner(contents=program, mode="755")
    if states.get(UNIT) != file_state(unit[UNIT]):
        yield from files._inner(contents=unit)
        yield "systemctl daemon-reload"
    elif "NeedDaemonReload=yes" in there["unit"]:
        yield "systemctl daemon-reload"


def trial() -> str:
    """The program that has rules on trial."""
    words = shlex.join(f"--property={each}" for each in confined.filter_back(STATE))
    return render("firewall/try-rules.j2", properties=words)


def _tried(rules: str, confirm_s: int) -> Iterator[Any]:
    """Load rules, and keep them if the node can still be reached."""
    yield StringCommand(PROGRAM, "try", str(confirm_s), _stdin=rules, _timeout=confirm_s)
    yield FunctionCommand(_reached_anew, (confirm_s,), {})
    yield StringCommand(PROGRAM, "keep")


def _reached_anew(state: Any, host: Any, confirm_s: int) -> bool:
    """Whether a new connection comes through. The old one proves nothing: what is established may go on."""
    # Its tracebacks of tries that fail are no news.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    began_s, limit_s = time.monotonic(), confirm_s * CONNECT_SHARE
    while (left_s := limit_s - (time.monotonic() - began_s)) > 0:
        with suppress(Exception), Timeout(left_s, False):
            clear_askpass_cache(host)
            host.disconnect()
            host.connect(show_errors=False)
            if host.connected and shell(host, "true")[0]:
                return True
        time.sleep(1)
    left_s = max(0, confirm_s - (time.monotonic() - began_s))
    host.log_styled(
        f"firewall: no new connection comes through the new rules; the rules from before are back in {left_s:.0f} s",
        fg="red",
        log_func=logger.error,
    )
    return False


def _gone(there: dict[str, str]) -> Iterator[Any]:
    """Take away what an earlier deploy has made; nftables itself stays, others may use it."""
    states = FileStates().process(there["files"].splitlines())
    if not states and not there["table"] and not there["trying"]:
        host.noop("nothing listens beyond loopback: no packet filter")
        return
    if there["trying"]:
        # Before the timer puts back what is not wanted any more.
        yield f"systemctl stop moehost-firewall-revert.timer 2>/dev/null; rm -rf {STATE}"
    if UNIT in states:
        yield f"systemctl disable --quiet --now {NAME}"
        yield f"rm -f {UNIT} && systemctl daemon-reload"
    if there["table"]:
        yield "if nft list table inet moehost >/dev/null 2>&1; then nft delete table inet moehost; fi"
    if leave := [path for path in (RULES, PROGRAM) if path in states]:
        yield f"rm -f {' '.join(leave)}"
