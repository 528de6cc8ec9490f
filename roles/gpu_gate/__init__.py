"""The gate before every service with cards: they answer, by NVML and by CUDA, and have their power limits."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.gpu_gate.operations import gate


@deploy("Cards")
def gpu_gate(node: Node) -> None:
    if node.gpu != "off":
        gate(name="Let services wait until the cards answer", node=node)
