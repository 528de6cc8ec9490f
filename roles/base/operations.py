"""How a node gets moehost's account and directories: systemd makes them, from its own kind of files."""

from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import operation

from moehost.confined import BUILDER, FETCHER
from roles.base.facts import Directories

DIRECTORIES = {
    "/etc/moehost": "root:root 755",
    "/opt/moehost/engine/releases": "root:root 755",
    "/usr/local/libexec/moehost": "root:root 755",
    "/var/lib/moehost-build": f"{BUILDER}:{BUILDER} 755",
}


@operation()
def account_and_directories(models_dir: str) -> Iterator[str]:
    """
    Have the accounts and the directories of `sysusers.d/moehost.conf` and `tmpfiles.d/moehost.conf`.

    + models_dir: the model store
    """
    wanted = DIRECTORIES | {models_dir: f"{FETCHER}:{FETCHER} 755", "account": "present"}
    if host.get_fact(Directories, paths=[*DIRECTORIES, models_dir]) == wanted:
        host.noop("the accounts and the directories are there")
        return
    yield "systemd-sysusers /etc/sysusers.d/moehost.conf"
    yield "systemd-tmpfiles --create /etc/tmpfiles.d/moehost.conf"
