"""What `moehost doctor` asks a node, in one round trip."""

from pyinfra.api import FactBase

from roles.doctor.facts import Condition
from roles.facts import Machine, Texts, together
from roles.host_tuning.facts import Topology
from roles.nvidia_container_toolkit.facts import ContainerToolkit
from roles.nvidia_driver.facts import Driver

# Facts whose texts are read along: `machine.lscpu` is the text `lscpu` of the first.
PARTS: dict[str, type[Texts]] = {
    "machine": Machine,
    "condition": Condition,
    "driver": Driver,
    "tuning": Topology,
    "containers": ContainerToolkit,
}


class Doctor(Texts, FactBase[dict[str, str]]):
    """The texts of several facts, as `<part>.<key>`."""

    commands = together({part: fact.commands for part, fact in PARTS.items()})
