"""What a router has: files by path, and the text of each."""

import json
from pathlib import Path
from typing import Any

import moehost
from moehost import confined, router
from moehost.router import ANSWER_S, BODY_S, HEADER_S, IDLE_S, MIB, Model, Server
from moehost.settings import Node
from moehost.settings_access import Router
from roles.models.verification import LIBRARY
from roles.operations import render
from roles.router.facts import (
    AUTHORITIES,
    CERTIFICATE,
    CONFIGURATION,
    DRAINS,
    FILES,
    LEASES,
    MAKE_CERTIFICATE,
    MODELS,
    NODE_KEY,
    NODES,
    OWN_LIST,
    OWNERS_AUTHORITY,
    OWNERS_LIST,
    SOCKETS,
    TIMER,
    UNIT,
    certificate_of,
)

SYSTEM = "/etc/ssl/certs/ca-certificates.crt"
UNITS = "/etc/systemd/system"
SYSUSERS, TMPFILES = "/etc/sysusers.d/moehost-router.conf", "/etc/tmpfiles.d/moehost-router.conf"
MODULE = f"{LIBRARY}/moehost/balancer.py"
EVER = [
    *(f"{UNITS}/{each}" for each in (UNIT, LEASES, TIMER)),
    *(CONFIGURATION, MODELS, NODES, CERTIFICATE, NODE_KEY, OWNERS_LIST, AUTHORITIES, FILES, DRAINS),
    *(MAKE_CERTIFICATE, MODULE, TMPFILES),
]
# Connections at the same time: each may have a request in memory.
MAXCONN = 2000
# How long a client is told to wait: for a node, for an answer of its own to end, for its minute to go by.
RETRY_QUEUE_S, RETRY_CONCURRENT_S, RETRY_RATE_S = 10, 5, 20
# So much of a prompt says which conversation it belongs to.
PROMPT_BYTES = 1024


def programs() -> dict[str, str]:
    """What runs on the router beside HAProxy, readable by all."""
    package = Path(moehost.__file__).parent
    return {
        f"{LIBRARY}/moehost/__init__.py": (package / "__init__.py").read_text(),
        MODULE: (package / "balancer.py").read_text(),
        TMPFILES: render("router/tmpfiles.conf.j2", drains=DRAINS),
    }


def authority(wish: Router, server: Server) -> str:
    """The file by which a node's gateway is known; that of the system's authorities where nobody named another."""
    if server.has_own_authority:
        return f"{AUTHORITIES}/{server.label}.crt"
    return OWNERS_AUTHORITY if wish.node_ca_file else SYSTEM


def list_in_use(wish: Router) -> str:
    """The list of keys that counts."""
    return OWNERS_LIST if wish.user_keys_file else OWN_LIST


def asked(wish: Router) -> dict[str, Any]:
    """The arguments of the fact RouterState."""
    name = router.certificate_name(wish.host)
    return {"certificate": name, "host": wish.host, "port": wish.port, "trusted": certificate_of(wish)}


def tables(models: list[Model]) -> dict[str, str]:
    """What is answered to `/v1/models`, and which nodes serve what, as JSON."""
    listed = [{"id": each.name, "object": "model", "created": 0, "owned_by": "moehost"} for each in models]
    nodes = {each.name: {server.label: server.port for server in each.servers} for each in models}
    return {
        MODELS: json.dumps({"object": "list", "data": listed}) + "\n",
        NODES: json.dumps(nodes) + "\n",
    }


def configuration(node: Node, models: list[Model], has_ipv6: bool) -> str:
    """
    The text of HAProxy's configuration.

    + node: the settings of the host
    + models: what it stands before
    """
    wish = node.router
    assert wish  # noqa: S101  (a deploy comes here only with one)
    return render(
        "router/haproxy.cfg.j2",
        router=wish,
        models=models,
        has_ipv6=has_ipv6,
        offered=router.offered(each.name for each in models),
        authorities={server.label: authority(wish, server) for each in models for server in each.servers},
        allow_from=["127.0.0.0/8", "::1/128", *wish.allow_from],
        certificate=CERTIFICATE,
        files=FILES,
        sockets=SOCKETS,
        state_file=f"{FILES}/servers.state",
        models_file=MODELS,
        maxconn=MAXCONN,
        max_body_bytes=wish.max_body_mib * MIB,
        header_s=HEADER_S,
        body_s=BODY_S,
        idle_s=IDLE_S,
        answer_s=ANSWER_S,
        retry_queue_s=RETRY_QUEUE_S,
        retry_concurrent_s=RETRY_CONCURRENT_S,
        retry_rate_s=RETRY_RATE_S,
        prompt_bytes=PROMPT_BYTES,
    )


def unit(node: Node, models: list[Model], generation: str) -> str:
    """
    The text of the router's unit.

    + node: the settings of the host
    + models: what it stands before
    + generation: what its process is recognised by
    """
    wish = node.router
    assert wish  # noqa: S101  (a deploy comes here only with one)
    return render(
        "router/moehost-router.service.j2",
        generation=generation,
        library=LIBRARY,
        certificate_name=router.certificate_name(wish.host),
        makes_certificate=not wish.certificate_file,
        certificate_program=MAKE_CERTIFICATE,
        prepare="/usr/bin/python3 -B -m moehost.balancer prepare",
        reload="/usr/bin/python3 -B -m moehost.balancer reload",
        files_of_haproxy=f"-f {FILES}/running.cfg -f {CONFIGURATION}",
        sockets=SOCKETS,
        is_privileged_port=wish.port < 1024,
        services=[each.name for each in node.services],
        models_dir=node.models_dir,
        addresses=router.addresses(wish, models),
        port=wish.port,
    )


def leases() -> dict[str, str]:
    """The units that give nodes requests again whose drain is over, by path."""
    settle = "/usr/bin/python3 -B -m moehost.balancer settle"
    values = {"library": LIBRARY, "settle": settle, "sockets": SOCKETS, "properties": confined.leases(DRAINS)}
    return {
        f"{UNITS}/{LEASES}": render("router/moehost-router-leases.service.j2", **values),
        f"{UNITS}/{TIMER}": render("router/moehost-router-leases.timer.j2"),
    }
