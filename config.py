"""pyinfra settings, and what pyinfra does otherwise here.

INVENTORY may be a directory, or one of Ansible's (`ansible:PATH`); containers stay; `--json` says more.
"""

from pathlib import Path
from typing import Any

from pyinfra import config
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.docker import DockerConnector
from pyinfra_cli import cli
from pyinfra_cli.exceptions import CliError

from moehost import ansible_inventory
from roles import timing

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
