"""A service in a container beside a native one, on a machine that runs containers as real ones do; and a reboot.

The engine is the stand-in (see engine.py); Podman, its generator, crun, systemd and the kernel are real.
"""

from tests.fixtures.node import changes
from tests.vm_node.figures import measured

UNIT = "llama-server-boxed.service"


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
