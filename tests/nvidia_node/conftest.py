"""The node with stub cards, deploys of what belongs to the cards, and the figures that come out of it."""

import copy
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures import node as fixture
from tests.fixtures.node import ROOT, changes, instance
from tests.stub_nvidia.node import Stub

FIGURES = ROOT / ".sandbox/nvidia-figures"
# What belongs to the cards, without engine, models and services. Where cards don't answer, the gate waits for two
# minutes, as after a boot: here not.
DEPLOY = """
from roles.gpu_gate import gpu_gate, operations
from roles.node import this_node
from roles.nvidia_container_toolkit import nvidia_container_toolkit
from roles.nvidia_driver import nvidia_driver

operations.LIMIT_S = 1
if node := this_node():
    nvidia_driver(node)
    nvidia_container_toolkit(node)
    gpu_gate(node)
"""


class Node(fixture.Node):
    """The node under test, with the state of its stub cards, and deploys of what belongs to them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stub = Stub(self.name)

    def deploy_cards(self, settings: dict[str, Any], text: str = DEPLOY) -> subprocess.CompletedProcess[str]:
        """A deploy of these roles only."""
        hosts, deploy = self.folder / "hosts.py", self.folder / "deploy.py"
        hosts.write_text(f"nodes = [({'@podman/' + self.name!r}, {settings!r})]\n")
        deploy.write_text(text)
        command = ["pyinfra", str(hosts), str(deploy), "--yes", "--json"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def converges(self) -> None:
        """A deploy of these roles succeeds, and then nothing is left to change."""
        assert not changes(self.deploy_cards(self.settings)) or not changes(self.deploy_cards(self.settings))

    def merged_settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The scenario's settings with these changes; those of a section are added to it."""
        settings = copy.deepcopy(self.settings)
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        return settings


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The first instance of the scenario."""
    plain = instance(tmp_path_factory.mktemp("inventory"))
    return Node(plain.name, plain.folder)


@pytest.fixture(scope="session")
def healthy(node: Node) -> Iterator[None]:
    """The node as deploys of the cards have it; in the end it is as the whole deploy has it."""
    node.converges()
    yield
    changes(node.deploy())


@pytest.fixture(scope="session")
def tried() -> dict[str, bool]:
    """The broken hosts that were tried, and whether each failed for the right reason."""
    return _tried


_tried: dict[str, bool] = {}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    line = f"nvidia (stub): {len(_tried)} broken hosts tried, {sum(_tried.values())} failed for the right reason"
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(line + "\n")
    terminalreporter.write_line(line)
