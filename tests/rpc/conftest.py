"""Two nodes, an inventory of both, and a third computer on their network."""

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.neighbour import Neighbour, neighbour
from tests.fixtures.node import ROOT, Node

NETWORK = "10.88.0.0/16"
PORT = 50052


class Pair:
    """A main node and its worker: deploys to both, and answers of the model."""

    def __init__(self, folder: Path) -> None:
        inventory = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
        main, worker = sorted(inventory["all"]["hosts"])
        self.main, self.worker, self.path = Node(main, folder), Node(worker, folder), folder / "hosts.py"

    @staticmethod
    def address(node: Node) -> str:
        """The node's address in Podman's network."""
        words = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", node.name]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def shared(self, **rpc: Any) -> dict[str, Any]:
        """The main node's settings with its service shared."""
        worker = {"host": f"@podman/{self.worker.name}", "address": self.address(self.worker)}
        wish = {"network": NETWORK, "address": self.address(self.main), "workers": [worker], **rpc}
        # Threads of the engine wait for each other in circles: on a computer with other work, one is faster than two.
        wish["threads"] = 1
        return self.main.changed_settings(placement="rpc", rpc=wish)

    def inventory(self, main: dict[str, Any]) -> Path:
        """An inventory of both nodes; the worker itself describes no service."""
        worker = copy.deepcopy(self.worker.settings) | {"services": []}
        nodes = [(f"@podman/{self.main.name}", main), (f"@podman/{self.worker.name}", worker)]
        self.path.write_text(f"nodes = {nodes!r}\n")
        return self.path

    def deploy(self, main: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
        """A deploy to both nodes."""
        command = ["pyinfra", str(self.inventory(main)), "deploy.py", "--yes", "--json", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def answer(self) -> str:
        """What the model says, the likeliest token each time."""
        asked = {"prompt": "What is a mixture of experts?", "n_predict": 24, "temperature": 0, "cache_prompt": False}
        return str(json.loads(self.main.run(ASK.replace("DATA", json.dumps(asked))))["content"])


ASK = (
    'printf \'header = "Authorization: Bearer %s"\' "$(cat /etc/moehost/tiny/api-keys)" | '
    "curl --silent --fail --config - http://127.0.0.1:8080/completion --data 'DATA'"
)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The two instances of the scenario."""
    return Pair(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="session")
def outside() -> Iterator[Neighbour]:
    """A third computer on the nodes' network."""
    with neighbour(7) as found:
        yield found
