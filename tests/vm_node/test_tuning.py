"""The host's tuning on a real kernel: in effect, in effect after a reboot, and undone.

`host` is testinfra's; `node` has the scenario's settings and writes inventories, as `tests.fixtures.node.Node` does.
"""

import json
import subprocess

import pytest

from moehost.huge_page_pools import of_words
from roles.host_tuning import facts
from tests.fixtures.node import ROOT, changes

OFF = dict.fromkeys(("numa", "huge_pages", "cpu", "memory", "io"), "off")
# What is tuned in every machine, also in a virtual one.
SYSCTLS = {
    "kernel.numa_balancing": 0,
    "vm.zone_reclaim_mode": 0,
    "vm.swappiness": 10,
    "vm.dirty_ratio": 0,
    "vm.dirty_background_ratio": 0,
}
THP = "/sys/kernel/mm/transparent_hugepage"
OWN = (facts.SYSCTL, facts.TMPFILES, facts.UDEV, facts.GRUB)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Tuned:
    """Deploys of the tuning alone, each with a reboot where one is needed."""

    def __init__(self, node, host):
        self.node, self.host = node, host

    def deploy(self, allow_reboot=True, **tuning):
        """A deploy with this `tuning`."""
        settings = {**self.node.settings, "engine": {"source": "git"}, "allow_reboot": allow_reboot, "tuning": tuning}
        command = ["pyinfra", str(self.node.inventory(settings)), "tests/vm_node/tuning.py", "--yes", "--json"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def words(self):
        """The kernel's command line."""
        return self.host.check_output("cat /proc/cmdline").split()

    def state(self):
        """All that the role may change, apart from its files."""
        names = " ".join([*SYSCTLS, "vm.dirty_bytes", "vm.dirty_background_bytes"])
        return self.host.check_output(
            f"sysctl {names}; head {THP}/enabled {THP}/defrag /sys/block/vd*/queue/scheduler "
            "/sys/block/vd*/queue/read_ahead_kb; tr ' ' '\\n' </proc/cmdline | grep -vE '^(BOOT_IMAGE|root)='"
        )

    def there(self):
        """Files of the role."""
        return {path for path in (*OWN, facts.BEFORE) if self.host.file(path).exists}


@pytest.fixture(scope="module")
def untuned(node, host):
    """The machine as it is without any tuning; at the end it is as the scenario has it."""
    tuned = Tuned(node, host)
    changes(tuned.deploy(**OFF))
    assert tuned.there() == set()
    yield tuned, tuned.state()
    changes(tuned.deploy(**node.settings.get("tuning", {})))


@pytest.fixture(scope="module")
def static(untuned):
    """With static huge pages and a further word."""
    tuned, before = untuned
    assert changes(tuned.deploy(huge_pages="static", kernel_parameters=["iommu=pt"])) != []
    return tuned, before


def test_a_second_run_changes_nothing(static):
    tuned, _ = static
    assert changes(tuned.deploy(huge_pages="static", kernel_parameters=["iommu=pt"])) == []


def test_the_command_line_has_the_words(static):
    tuned, _ = static
    words = tuned.words()
    assert "default_hugepagesz=2M" in words
    assert "iommu=pt" in words
    # Somebody else's are still there.
    assert any(word.startswith("root=") for word in words)


def test_each_node_has_its_pool(static):
    tuned, _ = static
    nodes = [0, 1]
    wanted = of_words(tuned.words(), nodes)
    assert sum(wanted.pages.values()) > 0
    folder = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"
    found = {node: int(tuned.host.file(folder.format(node)).content_string) for node in nodes}
    assert found == dict(wanted.pages)


def test_values_are_in_effect_after_the_reboot(static):
    tuned, _ = static
    assert {key: tuned.host.sysctl(key) for key in SYSCTLS} == SYSCTLS
    assert tuned.host.sysctl("vm.dirty_bytes") == 4 * tuned.host.sysctl("vm.dirty_background_bytes") > 0


def test_programs_of_the_system_take_the_files(static):
    tuned, _ = static
    assert tuned.host.run(f"sysctl --load {facts.SYSCTL}").rc == 0
    verify = tuned.host.run(f"udevadm verify {facts.UDEV}")
    # Older ones have no such word.
    assert verify.rc == 0 or "Unknown command" in verify.stderr


def test_what_was_before_is_recorded(static):
    tuned, _ = static
    record = json.loads(tuned.host.file(facts.BEFORE).content_string)
    assert "iommu=pt" in record["words"]
    assert record["values"]["/proc/sys/vm/swappiness"] != "10"


def test_transparent_huge_pages_instead(static):
    tuned, _ = static
    assert changes(tuned.deploy(huge_pages="thp")) != []
    assert "[madvise]" in tuned.host.file(f"{THP}/enabled").content_string
    assert not [word for word in tuned.words() if "huge" in word or "iommu" in word]
    assert changes(tuned.deploy(huge_pages="thp")) == []


def test_a_value_that_drifted_is_applied_anew(static):
    tuned, _ = static
    tuned.host.check_output("sysctl vm.swappiness=60")
    assert len(changes(tuned.deploy(huge_pages="thp"))) == 1
    assert tuned.host.sysctl("vm.swappiness") == 10


def test_all_is_undone(static):
    tuned, before = static
    changes(tuned.deploy(**OFF))
    assert tuned.there() == set()
    assert tuned.state() == before
    assert changes(tuned.deploy(**OFF)) == []


def test_it_can_be_tuned_again(static):
    tuned, _ = static
    assert changes(tuned.deploy(allow_reboot=False)) != []
    assert set(OWN) - {facts.GRUB} <= tuned.there()
    assert changes(tuned.deploy(allow_reboot=False)) == []
