"""NVIDIA's driver: open kernel modules of one branch, loaded and held; a node without a card is left alone."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.nvidia_driver.operations import driver


@deploy("Driver")
def nvidia_driver(node: Node) -> None:
    if node.gpu == "off":
        return
    if node.allow_reboot:
        # One machine after the other, since it may reboot.
        driver(name="Have NVIDIA's driver, reboot for it if need be", node=node, _serial=True)
    else:
        driver(name="Have NVIDIA's driver", node=node)
