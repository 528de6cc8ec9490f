"""The gateway: TLS, users' keys and a list of what may be asked, before the services."""

from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy

from moehost import router
from moehost.settings import Node
from roles.gateway.facts import ACCOUNT, OWNERS_LIST, RENDER_KEYS, ROUTERS, UNIT
from roles.gateway.operations import (
    CERTIFICATE,
    CERTIFICATE_KEY,
    SYSUSERS,
    configured,
    gone,
    marked,
    owners_list,
    running,
)
from roles.node import routers
from roles.operations import files, render
from roles.proxy import account, handed_over, port_is_free, without_its_unit


@deploy("Gateway")
def gateway(node: Node) -> None:
    wish = node.gateway
    if wish is None:
        gone(name="Take away a gateway that is no longer described")
        return
    certificate, key = _read(wish.certificate_file), _read(wish.certificate_key_file)
    port_is_free(name="Look whether its port is free", setting="gateway.port", unit=UNIT, port=wish.port)
    without_its_unit(name="Install Caddy", wanted=["caddy"], unit="caddy.service")
    account(name="Make its account", sysusers=SYSUSERS, text=render("gateway/sysusers.conf.j2"), user=ACCOUNT)
    marked(name="Have services marked that are warm", services=node.services)
    files(
        name="Install the program that hands it the keys",
        contents={RENDER_KEYS: render("gateway/gateway-keys.j2")},
        mode="755",
    )
    handed_over(
        name="Have the owner's list of keys, and those of routers",
        contents={
            OWNERS_LIST: owners_list(wish.user_keys_file),
            ROUTERS: router.node_keys(host.name, routers()),
        },
        mode="600",
        owner="root:root",
    )
    handed_over(
        name="Have the owner's certificate",
        contents={CERTIFICATE: certificate, CERTIFICATE_KEY: key},
        mode="640",
        owner=f"root:{ACCOUNT}",
    )
    configured(name="Configure it", node=node, certificate=certificate)
    running(name="Run it, until it answers", node=node, certificate=certificate)


def _read(path: str | None) -> str | None:
    return Path(path).expanduser().read_text() if path else None
