"""pyinfra settings, and what it does otherwise: INVENTORY may be a directory, containers stay, JSON says more."""

from pathlib import Path
from typing import Any

from pyinfra import config
from pyinfra.connectors.docker import DockerConnector
from pyinfra_cli import cli

from roles import timing

config.REQUIRE_PYINFRA_VERSION = "~=3.10.0"

_make_inventory = cli.make_inventory


def make_inventory(inventory: str, **kwargs: Any) -> Any:
    """Read `hosts.py` when INVENTORY names a directory, so that `group_data/` beside it is found."""
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
