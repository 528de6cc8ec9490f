"""The host's tuning: values of the kernel's and words of its command line, each undone by one setting."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.host_tuning.operations import tuned


@deploy("Host tuning")
def host_tuning(node: Node) -> None:
    if node.allow_reboot:
        # One machine after the other, since it may reboot.
        tuned(name="Tune the host, reboot it if need be", node=node, _serial=True)
    else:
        tuned(name="Tune the host", node=node)
