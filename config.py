"""pyinfra settings, and the one thing pyinfra lacks: INVENTORY may be a directory."""

from pathlib import Path
from typing import Any

from pyinfra import config
from pyinfra_cli import cli

config.REQUIRE_PYINFRA_VERSION = "~=3.10.0"

_make_inventory = cli.make_inventory


def make_inventory(inventory: str, **kwargs: Any) -> Any:
    """Read `hosts.py` when INVENTORY names a directory, so that `group_data/` beside it is found."""
    hosts = Path(inventory, "hosts.py")
    return _make_inventory(str(hosts) if hosts.is_file() else inventory, **kwargs)


cli.make_inventory = make_inventory
