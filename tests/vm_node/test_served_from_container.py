"""A service in a container beside a native one, on a machine that runs containers as real ones do; and a reboot.

The engine is the stand-in (see engine.py); Podman, its generator, crun, systemd and the kernel are real.
"""

import copy

import pytest

from tests.fixtures.node import changes
from tests.vm_node import engine
from tests.vm_node.conftest import measured

UNIT = "llama-server-boxed.service"


@pytest.fixture(scope="module")
def both(node, tmp_path_factory):
    """The settings with which both services run."""
    settings = copy.deepcopy(node.settings)
    with measured("engine and image, made natively and sent"):
        settings["engine"] = engine.bring(node, tmp_path_factory.mktemp("engine"))
    settings["services"].append(settings["services"][0] | {"name": "boxed", "port": 8081, "runtime": "container"})
    with measured("deploy of a service in a container"):
        deployed = changes(node.deploy(settings))
    # What was brought is what the node would have made: both were found.
    assert "Service | Run boxed, warm" in deployed
    assert "Engine | Make a container image of the next release" not in deployed
    return settings


def server(node):
    """The pid of the server in the container, seen from outside."""
    return node.run("podman inspect --format '{{.State.Pid}}' llama-server-boxed")


def test_systemd_runs_it_and_it_answers(node, both):
    assert node.run(f"systemctl is-active {UNIT}") == "active"
    assert node.run(f"systemctl show --value --property UnitFileState {UNIT}") == "generated"
    assert UNIT in node.run(f"cat /proc/{server(node)}/cgroup")
    assert node.answers("boxed", 8081)
    assert node.answers("tiny", 8080)


def test_its_memory_is_interleaved(node, both):
    assert "interleave" in node.memory_policies(server(node))


def test_it_may_nothing_but_nice(node, both):
    assert "CapEff:\t0000000000800000" in node.run(f"cat /proc/{server(node)}/status")


def test_a_second_run_changes_nothing(node, both):
    assert changes(node.deploy(both)) == []


def test_both_come_back_by_themselves_after_a_reboot_and_a_deploy_finds_nothing_to_do(node, both):
    with measured("reboot, until everything serves again"):
        node.reboot()
    assert node.run("systemctl is-system-running") == "running"
    assert node.answers("tiny", 8080)
    assert node.answers("boxed", 8081)
    assert changes(node.deploy(both)) == []
