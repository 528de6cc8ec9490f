"""How a host becomes a router, and how it is none any more."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyinfra import host, inventory, logger, state
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from moehost import router, settings
from moehost.router import Model
from moehost.settings import Node
from moehost.settings_access import Router
from roles.facts import FileStates, PathsThere
from roles.gateway.facts import RootCertificate, UserKeys
from roles.llama_server.facts import ServiceState
from roles.node import routed
from roles.operations import file_state, files
from roles.proxy import asked_of_systemd, journal
from roles.router import wanted
from roles.router.facts import (
    ACCOUNT,
    BALANCER,
    CONFIGURATION,
    FILES,
    MAKE_CERTIFICATE,
    ROOT_CERTIFICATE,
    TIMER,
    UNIT,
    RouterState,
)

ANSWERS_WITHIN_S = 30


@operation()
def known() -> Iterator[Any]:
    """
    Have the certificate of each node's own authority; a node that can't be asked keeps the one that is there.

    Every host has this operation, with nothing that tells one from the other: pyinfra begins it when all hosts have
    come to it, so that gateways run by then. Without that, hosts with little to do are ahead of others.
    """
    wish = settings.read(host.data.dict()).router
    if wish is None:
        host.noop("this host is no router")
        return
    models = router.models(wish, routed(wish))
    found = {}
    for each in {server.node: server for model in models for server in model.servers}.values():
        if not each.has_own_authority:
            continue
        path = wanted.authority(wish, each)
        if root := _root_of(each.node):
            found[path] = root
        elif path in host.get_fact(FileStates, paths=[path]):
            logger.warning(
                "[%s] %s can't be asked for its certificate: the one from before stays", host.name, each.node
            )
        elif state.is_executing:
            logger.warning(
                "[%s] %s has no certificate yet, so it gets no requests: deploy it, then this host again",
                host.name,
                each.node,
            )
    yield from files._inner(contents=found)


def _root_of(name: str) -> str:
    """The certificate of a node's own authority, read from that node; empty where that can't be."""
    other = inventory.get_host(name)
    # It may be outside of --limit, or away.
    with suppress(Exception):
        if not other.connected:
            other.connect(show_errors=False)
        if other.connected:
            return str(other.get_fact(RootCertificate) or "")
    return ""


@operation()
def configured(node: Node, models: list[Model]) -> Iterator[Any]:
    """
    Have HAProxy's configuration, which HAProxy itself has found good before.

    + node: the settings of the host
    + models: what it stands before
    """
    wish = node.router
    assert wish  # noqa: S101  (a deploy comes here only with one)
    there = host.get_fact(RouterState, **wanted.asked(wish))
    if not wish.certificate_file and there.get("certificate") != "good":
        yield StringCommand("env", QuoteString(f"NAME={wanted.asked(wish)['certificate']}"), MAKE_CERTIFICATE)
    reachable = _reachable(wish, models)
    yield from files._inner(contents=wanted.tables(reachable))
    text = wanted.configuration(node, reachable, there.get("has_ipv6") == "yes")
    if host.get_fact(FileStates, paths=[CONFIGURATION]).get(CONFIGURATION) == file_state(text):
        return
    yield StringCommand(
        f"systemd-tmpfiles --create {wanted.TMPFILES} && ROUTER_GROUP={ACCOUNT} {BALANCER} prepare &&",
        f"new=$(mktemp) && cat >$new && said=$(haproxy -c -f {FILES}/running.cfg -f $new 2>&1);",
        "rc=$?; rm $new; [ $rc = 0 ] || { printf '%s\\n' \"$said\" | grep -v NOTICE | tail -n 4 >&2; exit 1; }",
        _stdin=text,
    )  # fmt: skip
    yield from files._inner(contents={CONFIGURATION: text})


def _reachable(wish: Router, models: list[Model]) -> list[Model]:
    """The models with those servers whose authority is known here."""
    paths = {wanted.authority(wish, server) for model in models for server in model.servers}
    there = host.get_fact(FileStates, paths=sorted(paths))
    return [
        Model(model.name, tuple(each for each in model.servers if wanted.authority(wish, each) in there))
        for model in models
    ]


@operation()
def running(node: Node, models: list[Model]) -> Iterator[Any]:
    """
    Have the router run by its files and keys, and wait until it answers through TLS.

    It restarts when its unit is not what it was started with; all else, also a newer HAProxy, is a reload, which cuts
    no answer off.

    + node: the settings of the host
    + models: what it stands before
    """
    wish = node.router
    assert wish  # noqa: S101  (a deploy comes here only with one)
    text = wanted.unit(node, models, "")
    generation = hashlib.sha256(text.encode()).hexdigest()[:16]
    units = {f"{wanted.UNITS}/{UNIT}": wanted.unit(node, models, generation), **wanted.leases()}
    changes = list(files._inner(contents=units))
    yield from changes
    now = host.get_fact(ServiceState, unit=UNIT, port=wish.port)
    if now.get("NeedDaemonReload") == "yes" or changes:
        yield "systemctl daemon-reload"
    if now.get("UnitFileState") != "enabled":
        yield f"systemctl enable --quiet {UNIT}"
    there = host.get_fact(RouterState, **wanted.asked(wish))
    is_started = now.get("generation") == generation and now.get("ActiveState") == "active"
    if not is_started:
        yield FunctionCommand(asked_of_systemd, (UNIT, "restart"), {})
    elif there.get("config") != "current":
        yield FunctionCommand(asked_of_systemd, (UNIT, "reload"), {})
    if there.get("timer") != "active":
        yield f"systemctl enable --quiet --now {TIMER}"
    if not is_started or there.get("config") != "current" or there.get("answer") not in ("200", "503"):
        yield FunctionCommand(_answers, (wanted.asked(wish),), {})
    elif not changes and there.get("timer") == "active":
        host.noop(f"{UNIT} answers as described")
    if state.is_executing:
        _warn(there.get("answer", ""), wish)


def _warn(answer: str, wish: Router) -> None:
    target = host.name if host.name.startswith("@") else f"@{host.name}"
    if answer == "503":
        logger.warning("[%s] no node is ready: moehost router status", host.name)
    if not host.get_fact(UserKeys, path=wanted.list_in_use(wish), unit=UNIT, root=ROOT_CERTIFICATE)["keys"].strip():
        how = "write one into router.user_keys_file" if wish.user_keys_file else f"moehost keys add NAME {target}"
        logger.warning("[%s] no user of the router has a key yet: %s", host.name, how)


def _answers(state: Any, host: Any, asked: dict[str, Any]) -> bool:
    """Wait until HAProxy goes by its files and answers through TLS; False with the reason if not."""
    started, there = time.monotonic(), {}
    while time.monotonic() - started < ANSWERS_WITHIN_S:
        there = host.get_fact(RouterState, **asked)
        is_well = there.get("answer") == "200" or (
            there.get("answer") == "503" and time.monotonic() - started > ANSWERS_WITHIN_S / 3
        )
        if there.get("config") == "current" and is_well:
            host.log(f"the router answers after {time.monotonic() - started:.0f} s", logger.info)
            return True
        time.sleep(0.5)
    said = f"configuration {there.get('config', 'unknown')}, /health {there.get('answer') or 'nothing'}"
    host.log_styled(
        f"the router does not answer as described within {ANSWERS_WITHIN_S} s ({said}); its last words:",
        fg="red",
        log_func=logger.error,
    )
    journal(host, UNIT)
    return False


@operation()
def gone() -> Iterator[Any]:
    """Take away a router that is no longer described; the users' keys and its own authority stay."""
    unit = f"{wanted.UNITS}/{UNIT}"
    there = [path for path in host.get_fact(PathsThere, paths=wanted.EVER, account=ACCOUNT) if "/" in path]
    others = [path for path in there if path != unit]
    if unit in there:
        # Its unit goes last, so that a run that is cut off is seen by the next.
        yield f"systemctl disable --quiet --now {UNIT} {TIMER}"
    if others:
        yield StringCommand("rm -rf", *(QuoteString(path) for path in others))
    if unit in there:
        yield f"rm {unit} && systemctl daemon-reload"
    if not there:
        host.noop("this host is no router")


def read(path: str | None) -> str | None:
    """The text of a file of the owner's, None without one."""
    return Path(path).expanduser().read_text() if path else None
