"""The host's tuning, applied and taken back on a simulated kernel: each setting, killed runs, reboots, refusals."""

import json
import logging
from typing import ClassVar

import pytest

from moehost.settings import read
from moehost.topology import chosen
from roles.host_tuning import facts
from roles.host_tuning.operations import WRITE, tuned
from roles.models.facts import StoredModel
from tests.fixtures import tuned_host
from tests.fixtures.tuned_node import STATIC, TunedNode
from tests.operations.plain import play

OFF = dict.fromkeys(("numa", "huge_pages", "cpu", "memory", "io"), "off")
BOOST = f"{tuned_host.CPUS}/cpufreq/boost"
SWAPPINESS = "/proc/sys/vm/swappiness"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
WORDS = "default_hugepagesz=2M hugepages=0:768,1:768"


@pytest.fixture
def node(tmp_path):
    return TunedNode(tmp_path)


@pytest.fixture
def two(tmp_path):
    """With two NUMA nodes."""
    return TunedNode(tmp_path, nodes=2)


@pytest.fixture
def said(caplog):
    """Warnings."""
    caplog.set_level(logging.WARNING, "pyinfra")
    return lambda: [each.getMessage() for each in caplog.records]


def test_a_second_run_changes_nothing(node):
    assert node.deploy()
    assert node.files == {facts.SYSCTL, facts.TMPFILES, facts.UDEV, facts.BEFORE}
    assert node.read(SWAPPINESS) == "10"
    assert chosen(node.read(THP)) == "madvise"
    assert node.deploy() == []


def test_what_was_before_is_recorded_before_anything_changes(node):
    before = node.values
    commands = node.deploy()
    assert facts.BEFORE in commands[0].replace(str(node.folder), "")
    record = json.loads(node.read(facts.BEFORE))["values"]
    assert record == {path: chosen(before[path]) for path in record}
    node.write(SWAPPINESS, "42\n")
    (again,) = node.deploy()
    assert again == WRITE
    assert node.read(SWAPPINESS) == "10"
    assert json.loads(node.read(facts.BEFORE))["values"] == record


@pytest.mark.parametrize("number", range(12))
def test_a_killed_run_is_finished_by_the_next_and_still_undone(node, number):
    before = node.values
    node.deploy(kill_before=number, tuning={"boost": False, "cpu_latency_us": 20})
    node.deploy(tuning={"boost": False, "cpu_latency_us": 20})
    assert node.deploy(tuning={"boost": False, "cpu_latency_us": 20}) == []
    node.deploy(kill_before=number, tuning=OFF)
    node.deploy(tuning=OFF)
    assert node.values == before
    assert node.files == set()
    assert node.deploy(tuning=OFF) == []


@pytest.mark.parametrize(("area", "file"), [("memory", facts.SYSCTL), ("io", facts.UDEV), ("huge_pages", None)])
def test_one_area_is_undone_alone(node, area, file):
    before = node.values
    node.deploy()
    tuned_values = node.values
    node.deploy(tuning={area: "off"})
    assert file not in node.files
    undone = {path for path, value in node.values.items() if value != tuned_values[path]}
    assert undone
    assert {path: node.values[path] for path in undone} == {path: before[path] for path in undone}
    node.deploy()
    assert node.values == tuned_values


def test_a_setting_that_is_taken_out_is_undone(node):
    node.deploy(tuning={"boost": False})
    assert node.read(BOOST) == "0"
    node.deploy()
    assert node.read(BOOST) == "1"
    assert BOOST not in json.loads(node.read(facts.BEFORE))["values"]


def test_the_files_say_the_same_to_the_next_boot(node):
    node.deploy(tuning={"boost": False, "cpu_latency_us": 0})
    tuned_values = node.values
    node.reboot()
    assert node.values == tuned_values
    assert node.deploy(tuning={"boost": False, "cpu_latency_us": 0}) == []


def test_a_value_that_the_kernel_refuses_is_a_warning(node, said):
    node.refuses.add(BOOST)
    node.deploy(tuning={"boost": False})
    assert f"{BOOST} stays 1: the kernel does not take 0" in said()[-1]
    assert node.read(SWAPPINESS) == "10"


def test_a_container_is_left_alone(tmp_path):
    node = TunedNode(tmp_path, container="podman\n")
    assert node.deploy(tuning={"huge_pages": "static", "kernel_parameters": ["iommu=pt"]}, services=[STATIC]) == []


def test_a_host_that_says_nothing_is_no_fault():
    _, (line,) = play(tuned, {facts.Topology: facts.Topology().default()}, node=read({}))
    assert line.startswith("not tuned: lscpu: ")


def test_a_plan_before_the_model_is_there():
    answers = {facts.Topology: tuned_host.texts(), StoredModel: None}
    commands, _ = play(tuned, answers, node=read({"tuning": {"huge_pages": "static"}, "services": [STATIC]}))
    assert commands == ["test -s /srv/models/m/manifest.json"]


class TestKernelCommandLine:
    STATIC: ClassVar = {"tuning": {"huge_pages": "static"}, "services": [STATIC]}

    def test_pools_wait_for_a_reboot_that_is_not_allowed(self, two):
        *_, update, refusal = [each for each in two.deploy(**self.STATIC) if "install" not in each]
        assert update == "update-grub"
        assert refusal == (
            f"refused: tuning.huge_pages: the kernel's command line lacks {WORDS}; "
            "reboot the node, or allow_reboot: True lets a deploy do it"
        )
        assert two.read(facts.GRUB).endswith(f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {WORDS}"')
        assert two.deploy(**self.STATIC) == [refusal]
        two.reboot()
        assert two.deploy(**self.STATIC) == []

    def test_a_reboot_that_is_allowed_brings_them(self, two):
        commands = two.deploy(**self.STATIC, allow_reboot=True)
        assert commands[-2:] == ["update-grub", "reboot"]
        assert WORDS in two.read("/proc/cmdline")
        assert two.deploy(**self.STATIC, allow_reboot=True) == []

    def test_pools_that_are_smaller_than_asked(self, two):
        two.lost_pages = 256
        *_, refusal = two.deploy(**self.STATIC, allow_reboot=True)
        assert refusal == (
            "refused: tuning.huge_pages: NUMA node 0 has 512 of 768 huge pages of 2M: 0.5 GiB lack; NUMA node 1 has "
            "512 of 768 huge pages of 2M: 0.5 GiB lack; reboot (memory is whole then), or tuning.huge_pages: 'thp'"
        )

    def test_another_model_has_other_pools_and_none_takes_them_away(self, two, said):
        two.deploy(**self.STATIC, allow_reboot=True)
        two.shard_gib = 4
        two.deploy(**self.STATIC, allow_reboot=True)
        assert two.read("/proc/cmdline").endswith(" ro quiet default_hugepagesz=2M hugepages=0:1024,1:1024")
        assert two.deploy() != []
        assert "the kernel's command line still has default_hugepagesz=2M hugepages=0:1024,1:1024" in said()[-1]
        assert facts.GRUB not in two.files
        assert two.deploy() == []
        two.reboot()
        assert two.read("/proc/cmdline").endswith(" ro quiet")
        two.deploy()
        assert json.loads(two.read(facts.BEFORE))["words"] == []
        assert two.deploy() == []

    @pytest.mark.parametrize("number", range(10))
    def test_killed_runs(self, two, number):
        before = two.values
        settings = {"tuning": OFF | {"huge_pages": "static", "kernel_parameters": ["iommu=pt"]}, "services": [STATIC]}
        two.deploy(kill_before=number, allow_reboot=True, **settings)
        two.deploy(allow_reboot=True, **settings)
        assert two.read("/proc/cmdline").endswith(f"{WORDS} iommu=pt")
        assert two.deploy(allow_reboot=True, **settings) == []
        two.deploy(kill_before=number, allow_reboot=True, tuning=OFF)
        two.deploy(allow_reboot=True, tuning=OFF)
        assert two.values == before
        assert two.files == set()
        assert two.read("/proc/cmdline").endswith(" ro quiet")
        assert two.deploy(allow_reboot=True, tuning=OFF) == []

    def test_a_further_word_is_only_said(self, node, said):
        settings = {"tuning": {"kernel_parameters": ["iommu=pt"]}}
        node.deploy(**settings)
        assert "lacks iommu=pt; reboot the node" in said()[-1]
        assert node.deploy(**settings) == []

    def test_a_boot_loader_that_is_not_known(self, tmp_path):
        node = TunedNode(tmp_path, has_grub="")
        (refusal,) = node.deploy(tuning={"kernel_parameters": ["iommu=pt"]})
        assert "there is no GRUB" in refusal
        node.write("/proc/cmdline", "ro iommu=pt\n")
        assert not [each for each in node.deploy(tuning={"kernel_parameters": ["iommu=pt"]}) if "refused" in each]

    def test_another_entry_boots(self, node, said, monkeypatch):
        monkeypatch.setattr(node, "reboot", lambda: None)
        *_, refusal = node.deploy(tuning={"kernel_parameters": ["iommu=pt"]}, allow_reboot=True)
        assert refusal.startswith("refused: tuning: after a reboot the kernel's command line lacks iommu=pt; look")
