"""How a node gets its gateway, and how one is taken away."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from moehost import gateway, keys
from moehost.settings import Node, Service
from moehost.unit import exec_line
from roles.facts import FileStates, PathsThere
from roles.gateway.facts import (
    ACCOUNT,
    ADMIN,
    CADDYFILE,
    FOLDER,
    KEYS,
    OWNERS_LIST,
    RENDER_KEYS,
    ROOT_CERTIFICATE,
    ROUTERS,
    UNIT,
    WARM,
    Gateway,
    RootCertificate,
    Unmarked,
    UserKeys,
    list_in_use,
)
from roles.llama_server.facts import ServiceState
from roles.operations import file_state, files, render
from roles.proxy import asked_of_systemd, journal

MIB = 1 << 20
DROP_IN = "/etc/systemd/system/llama-server-.service.d/40-moehost-warm.conf"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
SYSUSERS = "/etc/sysusers.d/moehost-gateway.conf"
CERTIFICATE, CERTIFICATE_KEY = f"{FOLDER}/certificate.pem", f"{FOLDER}/certificate.key"
# Seconds: for a request's head, for its body, for a connection without requests, for the begin of an answer.
HEADER_S, BODY_S, IDLE_S, ANSWER_S = 10, 120, 120, 7200
ANSWERS_WITHIN_S = 30


@operation()
def marked(services: list[Service]) -> Iterator[Any]:
    """
    Have systemd mark the services that are warm, which a router asks for. No unit's own text changes.

    + services: of the node
    """
    changes = list(files._inner(contents={DROP_IN: render("gateway/warm.conf.j2", warm=WARM)}))
    yield from changes
    if changes:
        yield "systemctl daemon-reload"
    # Those that were started before; one that ends meanwhile takes its mark along.
    for unit in host.get_fact(Unmarked, units=[each.unit for each in services]):
        mark = QuoteString(f"{WARM}/{unit.removesuffix('.service')}")
        yield StringCommand(
            "install -D /dev/null", mark, "; systemctl --quiet is-active", QuoteString(unit), "|| rm -f", mark
        )


@operation()
def configured(node: Node, certificate: str | None) -> Iterator[Any]:
    """
    Have the gateway's Caddyfile, which Caddy itself has found good before.

    + node: the settings of the node
    + certificate: the owner's, None for one of the node's own authority
    """
    text = caddyfile(node, certificate)
    if host.get_fact(FileStates, paths=[CADDYFILE]).get(CADDYFILE) == file_state(text):
        host.noop(f"as wanted: {CADDYFILE}")
        return
    arguments = exec_line(_key_sources(node))
    yield StringCommand(
        f"dir=$(mktemp -d) && {RENDER_KEYS} $dir/keys {arguments} && said=$(KEYS=$dir/keys HOME=$dir",
        "XDG_DATA_HOME=$dir XDG_CONFIG_HOME=$dir caddy validate --config /dev/stdin --adapter caddyfile 2>&1);",
        "rc=$?; rm -r \"$dir\"; [ $rc = 0 ] || { printf '%s\\n' \"$said\" | tail -n 3 >&2; exit 1; }",
        _stdin=text,
    )  # fmt: skip
    yield from files._inner(contents={CADDYFILE: text})


def caddyfile(node: Node, certificate: str | None) -> str:
    """The text of a node's Caddyfile."""
    wish = node.gateway
    assert wish  # noqa: S101  (a deploy comes here only with one)
    port = f":{wish.port}"
    return render(
        "gateway/Caddyfile.j2",
        gateway=wish,
        # With a certificate of the node's own, the first one says whom it is for.
        sites=[f"https://{port}"]
        if certificate
        else [f"{gateway.site(wish).removesuffix(port)}{port}", f"https://{port}"],
        routes=gateway.routes(node.services),
        allow_from=["127.0.0.0/8", "::1/128", *wish.allow_from],
        max_body_bytes=wish.max_body_mib * MIB,
        admin=ADMIN,
        warm=WARM,
        certificate=CERTIFICATE if certificate else None,
        certificate_key=CERTIFICATE_KEY,
        certificate_hash=hashlib.sha256((certificate or "").encode()).hexdigest()[:16],
        header_s=HEADER_S,
        body_s=BODY_S,
        idle_s=IDLE_S,
        answer_s=ANSWER_S,
    )


def unit(node: Node, generation: str) -> str:
    """
    The text of the gateway's unit.

    + generation: what its process is recognised by
    """
    wish = node.gateway
    assert wish  # noqa: S101  (a deploy comes here only with one)
    return render(
        "gateway/moehost-gateway.service.j2",
        generation=generation,
        keys=KEYS,
        caddyfile=CADDYFILE,
        admin=ADMIN,
        render_keys=exec_line([RENDER_KEYS, KEYS, *_key_sources(node)]),
        is_privileged_port=wish.port < 1024,
        services=[each.name for each in node.services],
        models_dir=node.models_dir,
        addresses=gateway.addresses(node),
        port=wish.port,
    )


def _key_sources(node: Node) -> list[str]:
    assert node.gateway  # noqa: S101  (a deploy comes here only with one)
    return [list_in_use(node.gateway.user_keys_file), *(each.name for each in node.services)]


@operation()
def running(node: Node, certificate: str | None) -> Iterator[Any]:
    """
    Have the gateway run by its files and keys, and wait until it answers through TLS.

    It restarts when its unit or Caddy itself is not what it was started with; all else is a reload, which cuts no
    answer off.

    + node: the settings of the node
    + certificate: the owner's, None for one of the node's own authority
    """
    wish = node.gateway
    assert wish  # noqa: S101  (a deploy comes here only with one)
    asked = {
        "services": [each.name for each in node.services],
        "keys": list_in_use(wish.user_keys_file),
        "host": wish.host,
        "port": wish.port,
        "trusted": CERTIFICATE if certificate else ROOT_CERTIFICATE,
    }
    there = host.get_fact(Gateway, **asked)
    generation = hashlib.sha256(f"{unit(node, '')}\n{there.get('binary')}".encode()).hexdigest()[:16]
    changes = list(files._inner(contents={UNIT_PATH: unit(node, generation)}))
    yield from changes
    now = host.get_fact(ServiceState, unit=UNIT, port=wish.port)
    if now.get("NeedDaemonReload") == "yes" or changes:
        yield "systemctl daemon-reload"
    if now.get("UnitFileState") != "enabled":
        yield f"systemctl enable --quiet {UNIT}"
    is_started = now.get("generation") == generation and now.get("ActiveState") == "active"
    if not is_started:
        yield FunctionCommand(asked_of_systemd, (UNIT, "restart"), {})
    elif there.get("config") != "current":
        yield FunctionCommand(asked_of_systemd, (UNIT, "reload"), {})
    # Taken from the gateway's folder with the gateway's rights, so that a link there leads root nowhere.
    if not certificate and (root := host.get_fact(RootCertificate)):
        yield from files._inner(contents={ROOT_CERTIFICATE: root})
    expected = "200" if node.services else "404"
    if not is_started or there.get("config") != "current" or there.get("answer") != expected:
        yield FunctionCommand(_answers, (asked, expected), {})
    elif not changes:
        host.noop(f"{UNIT} answers as described")
    users = host.get_fact(UserKeys, path=asked["keys"], unit=UNIT, root=ROOT_CERTIFICATE)["keys"]
    if state.is_executing and not users.strip():
        how = "write one into gateway.user_keys_file" if wish.user_keys_file else f"moehost keys add NAME {_target()}"
        logger.warning("[%s] no user of the gateway has a key yet: %s", host.name, how)


def _target() -> str:
    """How a command names this host."""
    return host.name if host.name.startswith("@") else f"@{host.name}"


def _answers(state: Any, host: Any, asked: dict[str, Any], expected: str) -> bool:
    """Wait until the gateway answers /health through TLS with its own certificate; False with the reason if not."""
    started, status = time.monotonic(), ""
    while time.monotonic() - started < ANSWERS_WITHIN_S:
        status = host.get_fact(Gateway, **asked).get("answer", "")
        if status == expected:
            host.log(f"the gateway answers after {time.monotonic() - started:.0f} s", logger.info)
            return True
        time.sleep(1)
    host.log_styled(
        f"the gateway does not answer /health with {expected} within {ANSWERS_WITHIN_S} s (last: "
        f"{status or 'nothing'}); its last words:",
        fg="red",
        log_func=logger.error,
    )
    journal(host, UNIT)
    return False


@operation()
def gone() -> Iterator[Any]:
    """Take away a gateway that is no longer described; the users' keys and the node's own authority stay."""
    paths = [UNIT_PATH, CADDYFILE, RENDER_KEYS, OWNERS_LIST, ROUTERS, CERTIFICATE, CERTIFICATE_KEY]
    paths += [ROOT_CERTIFICATE, KEYS, DROP_IN, WARM]
    there = [path for path in host.get_fact(PathsThere, paths=paths, account=ACCOUNT) if path in paths]
    if UNIT_PATH in there:
        # Its unit goes last, so that a run that is cut off is seen by the next.
        yield f"systemctl disable --quiet --now {UNIT}"
    others = [path for path in there if path != UNIT_PATH]
    if others:
        yield StringCommand("rm -rf", *(QuoteString(path) for path in others))
    if UNIT_PATH in there:
        yield f"rm {UNIT_PATH} && systemctl daemon-reload"
    if not there:
        host.noop("there is no gateway")


def owners_list(path: str | None) -> str | None:
    """An owner's list of user keys as the node keeps it, None without one; mistakes were named before."""
    return keys.user_keys(_read(path), "", path) if path else None


def _read(path: str) -> str:
    return Path(path).expanduser().read_text()
