"""A service whose cards stay empty. The packaged engine is on the CPU: only the stub says that cards are in use."""

import pytest

from tests.fixtures.node import changes


@pytest.fixture
def empty_cards(node):
    """Cards that hold nothing whatever is started."""
    node.stub.set(used_mib=3)
    yield
    node.stub.reset()


def test_a_start_on_the_cpu_is_a_failed_start(node, empty_cards):
    failed = node.deploy(node.changed_settings(context=4096))
    assert failed.returncode == 1
    assert "CUDA0 holds 3 MiB, and at least" in failed.stderr
    assert "the engine runs on the CPU" in failed.stderr
    # It is no better for having been tried before.
    assert node.deploy(node.changed_settings(context=4096)).returncode == 1

    node.stub.reset()
    assert "Service | Run tiny, warm" in changes(node.deploy())
    assert changes(node.deploy()) == []
