"""The packet filter: a table of its own, tried before it counts, and taken away where nothing is to be guarded."""

from pyinfra import host
from pyinfra.api import deploy

from moehost.settings import Node
from moehost.sharing import peers
from roles.firewall.operations import filtered
from roles.node import inventory_shares


@deploy("Firewall")
def firewall(node: Node) -> None:
    filtered(name="Guard the ports that others reach", node=node, peers=peers(inventory_shares(), host.name))
