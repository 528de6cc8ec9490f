"""How a node comes to be watched, and how that is taken away."""

import re
import time
from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from moehost.settings import Node
from moehost.settings_metrics import Metrics
from roles.facts import FileStates, MissingPackages, PathsThere, units
from roles.metrics import wanted
from roles.metrics.facts import ACCOUNT, EXPORTER, FOLDER, LINK, PROMETHEUS, RECORD, TIMER, Watch
from roles.operations import files, packages, refuse, shell

# How long a program may take to answer after its start.
START_S = 30


def _cards(node: Node, there: dict[str, str]) -> int:
    return 0 if node.gpu == "off" else len(there["cards"].split())


def _texts(node: Node, wish: Metrics, there: dict[str, str]) -> dict[str, str]:
    return wanted.files(node, wish, _cards(node, there), there["host"].strip() or host.name)


def _ports(wish: Metrics) -> dict[str, tuple[str, int]]:
    """The setting and the port of each unit."""
    ports = {EXPORTER: ("metrics.port", wish.port)}
    if wish.prometheus:
        ports[PROMETHEUS] = ("metrics.prometheus_port", wish.prometheus_port)
    return ports


def holder(listening: str, port: int, pid: str) -> str:
    """Who listens on a port, other than a process: `name (pid N)`, or nothing.

    + listening: what `ss -Hltnp` says
    """
    for line in listening.splitlines():
        fields = line.split(None, 5)
        found = re.search(r'"([^"]*)",pid=(\d+)', line)
        if len(fields) > 3 and fields[3].rpartition(":")[2] == str(port) and found and found[2] != pid:
            return f"{found[1]} (pid {found[2]})"
    return ""


@operation()
def described(node: Node, wish: Metrics) -> Iterator[Any]:
    """
    Have the files: the program and its job, units, rules, dashboard; nothing is started by them.

    They come before the packages: an exporter that is installed then starts on loopback at once.

    + node: the settings of the node
    + wish: how it is watched
    """
    there = host.get_fact(Watch)
    state = units(there["units"])
    for unit, (key, port) in _ports(wish).items():
        if other := holder(there["listening"], port, state.get(unit, {}).get("MainPID", "")):
            yield refuse(f"{key}: {port} is taken by {other}; choose another or stop that program")
            return
    changes = list(files._inner(contents=_texts(node, wish, there)))
    yield from changes
    if changes:
        yield "systemctl daemon-reload"


@operation()
def installed(wish: Metrics) -> Iterator[Any]:
    """
    Have the exporter, and Prometheus where it is wanted, from the distribution.

    What moehost has installed is recorded before, so that it goes again. A Prometheus that was not there does not
    start by its package's own unit; one of the owner's is left alone.

    + wish: how the node is watched
    """
    needed = [wanted.PACKAGES[unit] for unit in _ports(wish)]
    missing = host.get_fact(MissingPackages, packages=needed)
    if not missing:
        host.noop(f"installed: {', '.join(needed)}")
        return
    record = sorted({*host.get_fact(Watch)["record"].split(), *missing})
    yield from files._inner(contents={RECORD: "".join(f"{each}\n" for each in record)})
    if "prometheus" in missing:
        yield "systemctl mask --quiet prometheus.service"
    yield from packages._inner(wanted=needed)


@operation()
def watched(node: Node, wish: Metrics) -> Iterator[Any]:
    """
    Have the exporter answer with the figures of cards and services, and Prometheus look at it where it is wanted.

    + node: the settings of the node
    + wish: how it is watched
    """
    there = host.get_fact(Watch)
    texts, state = _texts(node, wish, there), units(there["units"])
    begin = len(changes := list(_accounts(there)))
    if any(each.get("NeedDaemonReload") == "yes" for each in state.values()):
        changes.append("systemctl daemon-reload")
    marks = {EXPORTER: texts[wanted.DROP_IN], PROMETHEUS: texts.get(f"{wanted.UNITS}/{PROMETHEUS}", "")}
    running = dict(line.split(" ", 1) for line in there["generations"].splitlines() if " " in line)
    for unit in _ports(wish):
        if state.get(unit, {}).get("UnitFileState") != "enabled":
            changes.append(f"systemctl enable --quiet {unit}")
        is_new = running.get(unit) != wanted.generation_of(marks[unit])
        if is_new or state.get(unit, {}).get("ActiveState") != "active":
            changes.append(f"systemctl reset-failed {unit} 2>/dev/null; systemctl restart {unit}")
    timer = state.get(TIMER, {})
    if timer.get("UnitFileState") != "enabled" or timer.get("ActiveState") != "active" or begin:
        changes.append(f"systemctl enable --quiet {TIMER} && systemctl restart {TIMER}")
    yield from changes
    if changes:
        yield FunctionCommand(_answers, (wish,), {})
    else:
        host.noop("cards, services and the node are watched")


def _accounts(there: dict[str, str]) -> Iterator[str]:
    if there["account"].strip() != ACCOUNT:
        yield "systemd-sysusers /etc/sysusers.d/moehost-metrics.conf"
    if there["link"].strip() != wanted.OUTPUT:
        # Exporters of every version read Debian's own folder, and follow links. tmpfiles.d refuses the way there.
        yield f"ln -sfn {wanted.OUTPUT} {LINK}"


def _answers(state: Any, host: Any, wish: Metrics) -> bool:
    """Wait until the exporter tells the figures, and Prometheus is ready; False with what is wrong."""
    tests = {"the exporter": f"127.0.0.1:{wish.port}/metrics | grep -q '^moehost_unit_state'"}
    if wish.prometheus:
        tests["Prometheus"] = f"127.0.0.1:{wish.prometheus_port}/-/ready | grep -q ."
    end_s = time.monotonic() + START_S
    while tests:
        for what, test in list(tests.items()):
            if shell(host, f"curl --silent --fail --max-time 10 {test}")[0]:
                del tests[what]
        if tests and time.monotonic() > end_s:
            unit = PROMETHEUS if "Prometheus" in tests else "moehost-telemetry"
            says = f"{' and '.join(tests)}: no figures after {START_S} s; see journalctl -u {unit}"
            host.log_styled(says, fg="red", log_func=logger.error)
            return False
        time.sleep(0.5 if tests else 0)
    return True


@operation()
def unwatched(node: Node) -> Iterator[Any]:
    """
    Take away what the settings do not describe any more: units, files, packages that moehost had installed.

    What Prometheus has recorded stays in /var/lib/private/moehost-prometheus.

    + node: the settings of the node
    """
    wish, traces = node.metrics, [*wanted.EVER, RECORD, LINK]
    if not wish and not host.get_fact(PathsThere, paths=traces, account=ACCOUNT):
        host.noop("the node is not watched")
        return
    there = host.get_fact(Watch)
    texts = _texts(node, wish, there) if wish else {}
    leave = [path for path in host.get_fact(FileStates, paths=wanted.EVER) if path not in texts]
    kept = [wanted.PACKAGES[unit] for unit in _ports(wish)] if wish else []
    record = there["record"].split()
    purge = [each for each in record if each not in kept]
    state = units(there["units"])
    changes: list[Any] = []
    if f"{wanted.UNITS}/{PROMETHEUS}" in leave:
        changes.append(f"systemctl disable --now --quiet {PROMETHEUS}")
    if not wish and state.get(TIMER, {}).get("LoadState") == "loaded":
        changes.append(f"systemctl disable --now --quiet {TIMER}; systemctl stop moehost-telemetry.service")
    if not wish and there["link"].strip():
        changes.append(f"rm -f {LINK} && rm -rf /run/moehost-telemetry")
    if leave:
        changes.append(StringCommand("rm -f", *(QuoteString(path) for path in leave), "&& systemctl daemon-reload"))
    if purge:
        changes.append(StringCommand("DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet", *purge))
    if "prometheus" in purge:
        changes.append("systemctl unmask --quiet prometheus.service")
    if purge:
        changes += files._inner(contents={RECORD: "".join(f"{each}\n" for each in record if each in kept)})
    if wanted.DROP_IN in leave and "prometheus-node-exporter" not in purge:
        # The owner's own goes on as he has set it up.
        changes.append(f"systemctl try-restart {EXPORTER}")
    if not wish and there["account"].strip():
        changes.append(f"userdel {ACCOUNT}")
    if not wish and (leave or purge):
        changes.append(f"rm -rf {FOLDER}; rmdir {wanted.DROP_IN.rpartition('/')[0]} 2>/dev/null; true")
    yield from changes
    if not changes:
        host.noop("nothing of it is left over" if wish else "the node is not watched")
