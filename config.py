"""pyinfra settings, and what pyinfra does otherwise here.

INVENTORY may be a directory, or one of Ansible's (`ansible:PATH`); containers stay; `--json` says more; SSH is quick,
and so is each operation.
"""

import inspect
import socket
from functools import cache, partial, partialmethod
from pathlib import Path
from typing import Any

from paramiko import Transport
from pyinfra import config
from pyinfra.api import arguments, util
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.docker import DockerConnector
from pyinfra.connectors.sshuserclient import SSHClient
from pyinfra_cli import cli
from pyinfra_cli.exceptions import CliError

from moehost import ansible_inventory
from roles import one_session, timing

config.REQUIRE_PYINFRA_VERSION = "~=3.10.0"

_make_inventory = cli.make_inventory


def make_inventory(inventory: str, **kwargs: Any) -> Any:
    """Read `hosts.py` when INVENTORY names a directory, so that `group_data/` beside it is found; or ask Ansible."""
    if inventory.startswith(ansible_inventory.SCHEME):
        try:
            groups = ansible_inventory.groups(inventory.removeprefix(ansible_inventory.SCHEME))
        except ansible_inventory.AnsibleInventoryError as error:
            raise CliError(str(error)) from None
        everybody = (groups.pop("all"), {})
        return Inventory(everybody, kwargs["override_data"], **{name: (hosts, {}) for name, hosts in groups.items()})
    hosts = Path(inventory, "hosts.py")
    return _make_inventory(str(hosts) if hosts.is_file() else inventory, **kwargs)


cli.make_inventory = make_inventory

_find_container = DockerConnector._find_start_docker_container


def find_container(connector: DockerConnector, name: str) -> tuple[str, bool]:
    """Start a container that is stopped, and let it stay.

    pyinfra 3.10.0 takes it for a build: in the end it would make an image of it and remove it with all that it has.
    """
    return _find_container(connector, name)[0], True


DockerConnector._find_start_docker_container = find_container  # type: ignore[method-assign]

timing.install(cli)


def sent_at_once(sock: Any, **options: Any) -> Transport:
    """A transport without Nagle's algorithm, which would let each command wait 40 ms for a delayed ACK of the node's.

    Behind a ProxyJump or a ProxyCommand there is no socket, but the hop before has one. Ciphers that authenticate
    come first: with others paramiko compares a code for each packet, byte by byte in Python.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = Transport(sock, **options)
    offered = transport.get_security_options()
    offered.ciphers = sorted(offered.ciphers, key=lambda name: "gcm" not in name)
    return transport


one_session.install()

# For every client, hops among them; what `ssh_paramiko_connect_kwargs` of a host says comes later, and counts.
SSHClient.connect = partialmethod(SSHClient.connect, transport_factory=sent_at_once)  # type: ignore[method-assign]

# pyinfra 3.10.0 evaluates the types of its arguments and reads the source around each frame of the stack for every
# operation on every host, though the types stay, and only names of files and numbers of lines are looked at.
arguments.all_global_arguments = cache(arguments.all_global_arguments)
util.stack = partial(inspect.stack, context=0)  # type: ignore[attr-defined]
util.getframeinfo = partial(inspect.getframeinfo, context=0)  # type: ignore[attr-defined]
