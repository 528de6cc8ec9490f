"""How a node gets the gate that its services wait at until the cards answer."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation

from moehost.settings import Node
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.gpu_gate.facts import UNIT, Gate
from roles.operations import files, last_words, refuse, render, shell

# How long the cards may take after a boot; a driver of a board with much memory takes half a minute.
LIMIT_S = 120


@operation()
def gate(node: Node) -> Iterator[Any]:
    """
    Have `moehost-gpu.service`, behind which every service with cards starts: it succeeds when the cards answer.

    + node: the settings of the node
    """
    wish, there = node.nvidia, host.get_fact(Gate)
    on_bus = len(there["cards"].split())
    if not on_bus:
        host.noop("no NVIDIA card in this machine: no gate")
        return
    count = wish.cards or on_bus
    if len(wish.power_limit_w) not in (0, 1, count):
        yield refuse(
            f"nvidia.power_limit_w: has {len(wish.power_limit_w)} values for {count} card(s); write one for all, or "
            "one for each"
        )
        return
    watts = [str(each) for each in wish.power_limit_w]
    words = exec_line([f"{PROGRAMS}/gpu-ready", str(count), str(LIMIT_S), *watts])
    unit = {f"/etc/systemd/system/{UNIT}": render("gpu_gate/moehost-gpu.service.j2", words=words)}
    program = {f"{PROGRAMS}/gpu-ready": render("gpu_gate/gpu-ready.j2")}
    changes = [*files._inner(contents=program, mode="755"), *files._inner(contents=unit)]
    yield from changes
    if changes:
        yield "systemctl daemon-reload"
    active, _, enabled = there["state"].partition("\n")
    if enabled.strip() != "enabled":
        yield f"systemctl enable --quiet {UNIT}"
    # An active gate says how the cards were when it was passed.
    answer = len(there["answering"].splitlines()) >= count
    is_ready = active == "active" and there["ready"].split() == [str(count), *watts] and answer
    if changes or not is_ready:
        yield FunctionCommand(_passed, (), {})
    elif enabled.strip() == "enabled":
        host.noop(f"{count} card(s) ready")


def _passed(state: Any, host: Any) -> bool:
    """Pass the gate; False with its own sentence if the cards are not ready."""
    # Whoever waits behind an active gate serves on: a reload stops nobody.
    done, _ = shell(host, f"systemctl reset-failed {UNIT} 2>/dev/null; systemctl reload-or-restart {UNIT}")
    said = [line for line in last_words(host, f"_SYSTEMD_UNIT={UNIT}", 5) if "card" in line]
    last = said[-1] if said else f"{UNIT} failed without a word; see journalctl -u {UNIT}"
    if done:
        host.log(last, logger.info)
    else:
        host.log_styled(last, fg="red", log_func=logger.error)
    return done
