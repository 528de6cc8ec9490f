"""The router: users' keys, model names, queues and limits before several nodes."""

from pyinfra.api import deploy

from moehost import router as domain
from moehost.settings import Node
from roles.gateway.operations import owners_list
from roles.node import routed, routers
from roles.operations import files, render
from roles.proxy import account, handed_over, port_is_free, without_its_unit
from roles.router import wanted
from roles.router.facts import ACCOUNT, CERTIFICATE, MAKE_CERTIFICATE, NODE_KEY, OWNERS_AUTHORITY, OWNERS_LIST, UNIT
from roles.router.operations import configured, gone, known, read, running


@deploy("Router")
def router(node: Node) -> None:
    if routers():
        known(name="Know nodes by their certificates")
    wish = node.router
    if wish is None:
        gone(name="Take away a router that is no longer described")
        return
    models = domain.models(wish, routed(wish))
    port_is_free(name="Look whether its port is free", setting="router.port", unit=UNIT, port=wish.port)
    without_its_unit(name="Install HAProxy", wanted=["haproxy", "openssl"], unit="haproxy.service")
    account(name="Make its account", sysusers=wanted.SYSUSERS, text=render("router/sysusers.conf.j2"), user=ACCOUNT)
    files(
        name="Install the programs beside it",
        contents={MAKE_CERTIFICATE: render("router/router-certificate.j2")},
        mode="755",
    )
    files(name="Install what talks to it", contents=wanted.programs())
    handed_over(
        name="Have the owner's list of keys, and the key for nodes",
        contents={
            OWNERS_LIST: owners_list(wish.user_keys_file),
            NODE_KEY: f"{domain.node_key(wish.node_key_file)}\n",
        },
        mode="600",
        owner="root:root",
    )
    if wish.certificate_file:
        handed_over(
            name="Have the owner's certificate",
            contents={CERTIFICATE: f"{read(wish.certificate_file)}\n{read(wish.certificate_key_file)}"},
            mode="640",
            owner=f"root:{ACCOUNT}",
        )
    handed_over(
        name="Have the owner's authority of nodes",
        contents={OWNERS_AUTHORITY: read(wish.node_ca_file)},
        mode="644",
        owner="root:root",
    )
    configured(name="Configure it", node=node, models=models)
    running(name="Run it, until it answers", node=node, models=models)
