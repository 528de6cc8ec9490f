"""What a node has of moehost's packet filter, and what it must not cut off."""

from pyinfra.api import FactBase

from moehost.firewall import ACCOUNTS
from roles.base import PROGRAMS
from roles.facts import FileStates, Texts

NAME = "moehost-firewall.service"
UNIT = f"/etc/systemd/system/{NAME}"
RULES = "/etc/moehost/firewall.nft"
PROGRAM = f"{PROGRAMS}/try-rules"
STATE = "/run/moehost-firewall"
LIST = "nft --stateless list table inet moehost"

# The environment of a login survives in its processes, whatever sudo takes out of that of the command.
OF_ANCESTORS = (
    'pid=$$; while [ "${pid:-0}" -gt 1 ] && '
    "! tr '\\0' '\\n' </proc/$pid/environ | sed -n 's/^SSH_CONNECTION=//p' | grep .; "
    "do pid=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$pid/status); done"
)


class Filter(Texts, FactBase[dict[str, str]]):
    """The filter as texts.

    `nft`: path of the program; `files`: for FileStates; `unit`: properties of the unit; `table`: what the kernel has;
    `kept`: what the kernel makes of the file, tried in a network namespace that is gone at once; `trying`: rules that
    nobody has confirmed.
    """

    commands = {
        "nft": "command -v nft",
        "files": str(FileStates().command(paths=[RULES, UNIT, PROGRAM])),
        "unit": f"systemctl show --property ActiveState,UnitFileState,NeedDaemonReload {NAME}",
        "table": LIST,
        "kept": f"test -e {RULES} && unshare --net sh -c 'nft --file {RULES} && {LIST}'",
        "trying": f"ls {STATE}/before.nft",
    }


class Access(Texts, FactBase[dict[str, str]]):
    """Who gets in and out, as texts for `moehost.firewall.parse`.

    `accounts`: `NAME:NUMBER` of each that is there; `listening`: the sockets of sshd; `sockets`: what systemd listens
    on for it; `connection`: client and server of the SSH connection that asks.
    """

    commands = {
        "accounts": f"getent passwd {' '.join(ACCOUNTS)} | cut -d: -f1,3",
        "listening": "ss --no-header --listening --tcp --numeric --processes | grep '\"sshd\"'",
        "sockets": (
            "for unit in ssh.socket sshd.socket; do systemctl --quiet is-active $unit && "
            "systemctl show --property Listen --value $unit; done"
        ),
        "connection": OF_ANCESTORS,
    }
