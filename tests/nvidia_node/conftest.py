"""The node with stub cards, and the figures that come out of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.node import ROOT, changes, instance
from tests.stub_nvidia.cards import Node

FIGURES = ROOT / ".sandbox/nvidia-figures"


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
