"""The host's tuning on a real kernel: in effect since the last boot, kept, undone and applied again.

Comes after test_static_pages, whose way back is the reboot that these values have to be there after.
"""

import json
import subprocess

import pytest

from roles.host_tuning import facts
from tests.fixtures.node import ROOT, changes
from tests.vm_node.figures import measured

OFF = dict.fromkeys(("numa", "huge_pages", "cpu", "memory", "io"), "off")
THP = "/sys/kernel/mm/transparent_hugepage"
# What is tuned in every machine with several NUMA nodes, also in a virtual one.
VALUES = {
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/sys/vm/zone_reclaim_mode": "0",
    "/proc/sys/vm/swappiness": "10",
    f"{THP}/enabled": "madvise",
    f"{THP}/defrag": "madvise",
    "/sys/block/vdb/queue/read_ahead_kb": "4096",
    "/sys/block/vdb/queue/scheduler": "none",
}
FILES = {facts.SYSCTL, facts.TMPFILES, facts.UDEV}


class Tuned:
    """The node, and deploys of its tuning alone."""

    def __init__(self, node):
        self.node = node

    def deploy(self, **tuning):
        """What a deploy with this `tuning` changes."""
        settings = {**self.node.settings, "engine": {"source": "git"}, "tuning": tuning}
        command = ["pyinfra", str(self.node.inventory(settings)), "tests/vm_node/tuning.py", "--yes", "--json"]
        return changes(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))

    def value(self, path):
        """A value of the kernel's; of a choice the one in brackets."""
        text = self.node.run(f"cat {path}")
        return text.partition("[")[2].partition("]")[0] or text

    def there(self):
        """Files of the role."""
        found = self.node.run(f"ls -d {' '.join([*FILES, facts.GRUB, facts.BEFORE])} 2>/dev/null || true")
        return set(found.split())

    def before(self):
        """What the node keeps of the values from before."""
        return json.loads(self.node.run(f"cat {facts.BEFORE}"))["values"]


@pytest.fixture(scope="module")
def tuned(node, both):
    return Tuned(node)


@pytest.mark.parametrize("path", VALUES)
def test_a_value_is_in_effect_since_the_boot(tuned, path):
    assert tuned.value(path) == VALUES[path]


def test_write_back_is_limited_in_bytes(tuned):
    soon, wait = (int(tuned.value(f"/proc/sys/vm/dirty_{each}bytes")) for each in ("background_", ""))
    assert wait == 4 * soon > 0
    assert tuned.value("/proc/sys/vm/dirty_ratio") == "0"


def test_programs_of_the_system_take_the_files(tuned):
    assert tuned.there() == {*FILES, facts.BEFORE}
    tuned.node.run(f"sysctl --load {facts.SYSCTL}")
    # Older ones have no such word.
    said = tuned.node.run(f"udevadm verify {facts.UDEV} 2>&1 || true")
    assert "Success: 1" in said or "Unknown command" in said


def test_what_was_before_is_recorded(tuned):
    before = tuned.before()
    assert {path for path in VALUES if before.get(path, VALUES[path]) != VALUES[path]} >= {"/proc/sys/vm/swappiness"}


def test_a_value_that_drifted_is_applied_anew(tuned):
    tuned.node.run("sysctl vm.swappiness=60")
    assert len(tuned.deploy()) == 1
    assert tuned.value("/proc/sys/vm/swappiness") == "10"
    assert tuned.deploy() == []


def test_all_is_undone_and_applied_again(tuned):
    before = tuned.before()
    with measured("tuning undone"):
        assert len(tuned.deploy(**OFF)) == 1
    assert tuned.there() == set()
    # Of a limit in two units the kernel has 0 in the one that is not in use.
    wanted = {path: value for path, value in before.items() if "dirty" not in path or value != "0"}
    assert {path: tuned.value(path) for path in wanted} == wanted
    assert tuned.deploy(**OFF) == []
    assert len(tuned.deploy()) == 1
    assert {path: tuned.value(path) for path in VALUES} == VALUES
    assert tuned.there() == {*FILES, facts.BEFORE}
