"""Cards in containers: NVIDIA's container toolkit, and a CDI specification that is fresh and that Podman can read."""

from pyinfra import host
from pyinfra.api import deploy

from moehost.settings import Node
from roles.nvidia_container_toolkit.operations import toolkit
from roles.nvidia_container_toolkit.runtimes import runtime_configured


@deploy("Containers")
def nvidia_container_toolkit(node: Node) -> None:
    if not node.has_container_toolkit:
        return
    toolkit(name="Have the cards in containers, by CDI", nvidia=node.nvidia)
    for runtime in host.loop(node.nvidia.container_runtimes):
        runtime_configured(name=f"Have them in {runtime}, too", runtime=runtime)
