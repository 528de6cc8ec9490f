"""The packet filter: a table of its own, tried before it counts, and taken away where nothing is to be guarded."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.firewall.operations import filtered


@deploy("Firewall")
def firewall(node: Node) -> None:
    filtered(name="Guard the ports that others reach", node=node)
