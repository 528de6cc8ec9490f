"""How a node gets moehost's account and directories: systemd makes them, from its own kind of files."""

from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import operation

from roles.base.facts import Directories

DIRECTORIES = ["/etc/moehost", "/opt/moehost/engine/releases", "/usr/local/libexec/moehost"]


@operation()
def account_and_directories(models_dir: str) -> Iterator[str]:
    """
    Have the service account and the directories of `sysusers.d/moehost.conf` and `tmpfiles.d/moehost.conf`.

    + models_dir: the model store
    """
    wanted = dict.fromkeys([*DIRECTORIES, models_dir], "root:root 755") | {"account": "present"}
    if host.get_fact(Directories, paths=[*DIRECTORIES, models_dir]) == wanted:
        host.noop("the account and the directories are there")
        return
    yield "systemd-sysusers /etc/sysusers.d/moehost.conf"
    yield "systemd-tmpfiles --create /etc/tmpfiles.d/moehost.conf"
