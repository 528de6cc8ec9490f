"""What a node has of what tells of failures."""

from pyinfra.api import FactBase

from roles.facts import Texts

ACCOUNT = "moehost-notify"


class Telling(Texts, FactBase[dict[str, str]]):
    """`sendmail`: its path, empty without one; `account`; `reload`: `yes` for each unit to be read anew."""

    commands = {
        "account": f"getent passwd {ACCOUNT} | cut -d: -f1",
        "sendmail": "test -x /usr/sbin/sendmail && echo /usr/sbin/sendmail",
        "reload": "systemctl show --property NeedDaemonReload --value 'llama-server-*.service' 'moehost-*.service' "
        "| grep yes",
    }
