"""What a machine says of itself before it becomes a node."""

from pyinfra.api import FactBase

from roles.facts import CARDS, Machine, Texts


class Probe(Texts, FactBase[dict[str, str]]):
    """System, rights, hardware and disks of a machine, as text for `moehost.probe`; asked without sudo."""

    commands = {
        **Machine.commands,
        "os_release": "cat /etc/os-release",
        "arch": "uname -m",
        "uid": "id -u",
        "sudo": "sudo -n id -u",
        "python3": "python3 --version",
        "cards": CARDS,
        "disks": "df -P -k",
    }
