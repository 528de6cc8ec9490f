"""A machine that is installed again: its models are still there, and are not fetched again."""

import json
import subprocess

import pytest

from tests.fixtures.node import ROOT, changes
from tests.vm_node.figures import measured

# Inode, size, time of content and of everything else, of each file on the models' disk.
FILES = "find /srv/models -type f -printf '%p %i %s %T@ %C@\\n' | sort"
HAVE = "Models | Have tiny-qwen35moe in the store"


@pytest.fixture(scope="module")
def reinstalled(node):
    """The files on the models' disk before, and the deploy after it."""
    # QEMU is ended like a cut cable; a machine that is to be installed again is shut down.
    before = node.run(f"sync; {FILES}")
    assert "/srv/models/tiny-qwen35moe/tiny-qwen35moe.gguf " in before
    with measured("reinstalled"):
        subprocess.run(["moehost", "vm", "wipe", "--name", node.name], cwd=ROOT, check=True)
    assert node.run("ls -d /etc/moehost /opt/moehost 2>/dev/null || true") == ""
    with measured("deploy on the reinstalled node"):
        deployed = node.deploy()
    return before, deployed


def test_a_deploy_makes_it_serve_again(node, reinstalled):
    assert "Service | Run tiny, warm" in changes(reinstalled[1])
    assert node.answers("tiny", 8080)
    assert node.run("systemctl is-system-running") == "running"


def test_the_model_was_not_sent_again(node, reinstalled):
    before, deployed = reinstalled
    assert node.run(FILES) == before
    operations = {each["name"]: each for each in json.loads(deployed.stdout)["results"]["operations"]}
    assert not operations[HAVE]["success"]


def test_a_second_run_changes_nothing(node, reinstalled):
    with measured("deploy without changes"):
        assert changes(node.deploy()) == []
