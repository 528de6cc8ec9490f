"""The instance of the running Molecule scenario, and ways to deploy to it with other settings."""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCENARIO = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", ROOT / "molecule/default"))


class Node:
    """The node under test: its container, its settings, and deploys with changed ones."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.settings: dict[str, Any] = yaml.safe_load((SCENARIO / "node.yml").read_text())

    def run(self, command: str) -> str:
        """What a shell command prints on the node; it must succeed."""
        done = subprocess.run(["podman", "exec", self.name, "sh", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def deploy(self, settings: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """A deploy with these settings instead of the scenario's."""
        inventory = self.folder / "hosts.py"
        inventory.write_text(f"nodes = [({'@podman/' + self.name!r}, {settings or self.settings!r})]\n")
        command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def changed_settings(self, **service: Any) -> dict[str, Any]:
        """The scenario's settings with other values in the first service."""
        settings = copy.deepcopy(self.settings)
        settings["services"][0].update(service)
        return settings

    @property
    def unit(self) -> str:
        """Name of the first service's unit."""
        return f"llama-server-{self.settings['services'][0]['name']}.service"

    @property
    def process(self) -> str:
        """Identity of the running server: pid and start of its process."""
        return self.run(f"systemctl show --property MainPID,ExecMainStartTimestampMonotonic,ActiveState {self.unit}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The first instance of the scenario."""
    inventory = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
    return Node(next(iter(inventory["all"]["hosts"])), tmp_path_factory.mktemp("inventory"))


def changes(deploy: subprocess.CompletedProcess[str]) -> list[str]:
    """Names of the operations that changed something."""
    assert deploy.returncode == 0, deploy.stderr
    return [each["name"] for each in json.loads(deploy.stdout)["results"]["operations"] if each["success"]]
