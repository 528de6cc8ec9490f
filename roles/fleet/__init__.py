"""What `moehost deploy` and `moehost status` ask a node, in one round trip."""

from pyinfra.api import FactBase

from roles.doctor.facts import Condition
from roles.facts import Texts, together
from roles.fleet.facts import Serving
from roles.host_tuning.facts import Topology
from roles.lock.facts import Stack
from roles.nvidia_driver.facts import Driver

# Of the condition only what is quick: no card is asked for its log.
CONDITION = ("container", "user", "kernel", "uptime", "now", "reboot", "units", "journal", "releases")
PARTS = {
    "condition": {key: Condition.commands[key] for key in CONDITION},
    "serving": Serving.commands,
    "driver": Driver.commands,
    "tuning": Topology.commands,
    "stack": Stack.commands,
}


class Fleet(Texts, FactBase[dict[str, str]]):
    """The texts of several facts, as `<part>.<key>`, for `moehost.fleet`."""

    commands = together(PARTS)
