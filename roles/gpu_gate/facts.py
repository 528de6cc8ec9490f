"""What a node has of the gate that its services wait at."""

from pyinfra.api import FactBase

from roles.facts import CARDS, Texts

UNIT = "moehost-gpu.service"


class Gate(Texts, FactBase[dict[str, str]]):
    """The gate as texts.

    `cards`: a line for each card on the bus; `state`: whether the unit is active and enabled, a line each;
    `ready`: number of cards and watts that it found; `answering`: a line for each card that answers now.
    """

    commands = {
        "cards": CARDS,
        "state": f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}",
        "ready": "cat /run/moehost-gpu",
        "answering": "timeout 60 nvidia-smi -L | grep ^GPU",
    }
