"""The node under test."""

import pytest

from tests.fixtures.node import Node, instance


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The first instance of the scenario."""
    return instance(tmp_path_factory.mktemp("inventory"))
