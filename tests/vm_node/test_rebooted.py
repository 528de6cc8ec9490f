"""A machine that is rebooted serves again by itself."""

from tests.fixtures.node import changes
from tests.vm_node.conftest import measured


def test_services_come_back_by_themselves_and_a_deploy_finds_nothing_to_do(node):
    with measured("reboot, until everything serves again"):
        node.reboot()
    assert node.run("systemctl is-system-running") == "running"
    assert node.answers("tiny", 8080)
    assert changes(node.deploy()) == []
