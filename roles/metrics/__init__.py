"""Figures of a node: cards, services and plans for a Prometheus of the owner's, or one on the node."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.metrics.operations import described, installed, unwatched, watched
from roles.operations import packages


@deploy("Metrics")
def metrics(node: Node) -> None:
    wish = node.metrics
    if not wish:
        unwatched(name="Take away the exporter, the figures and Prometheus", node=node)
        return
    described(name="Describe what is looked at, the units and the alerts", node=node, wish=wish)
    packages(name="Have the bus that systemd is asked over", wanted=["dbus"], _retries=5, _retry_delay=10)
    installed(name="Install the exporter", wish=wish, _retries=5, _retry_delay=10)
    watched(name="Have cards, services and the node watched", node=node, wish=wish)
    unwatched(name="Take away what of it is not described", node=node)
