"""A server's process as the kernel has it: read from its texts, and compared with the plan."""

from dataclasses import replace

import pytest

from moehost.process import Process
from tests.unit.test_memory_policy import planned

SMAPS = """\
5581a8c4d000-7ffd2b9f1000 ---p 00000000 00:00 0                          [rollup]
Rss:            {rss} kB
Pss:              301322 kB
AnonHugePages:    {thp} kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:  {static} kB
"""
NUMA_MAPS = """\
5581a8c4d000 default file=/opt/llama-server mapped=12 N0=12 kernelpagesize_kB=4
7f0a00000000 interleave:0-1 anon=512 dirty=512 N0=256 N1=256 kernelpagesize_kB=4
7f0b00000000 interleave:0-1 anon=64 dirty=64 N0=32 N1=32 kernelpagesize_kB=2048
7ffd2b9d0000 default stack anon=3 dirty=3 N1=3 kernelpagesize_kB=4
"""


def texts(rss=1 << 20, thp=0, static=0, numa_maps=NUMA_MAPS, capabilities="0", namespaces="1 1", nice="-5"):
    return {
        "smaps": SMAPS.format(rss=rss, thp=thp, static=static),
        "numa_maps": numa_maps,
        "status": f"CapEff:\t{capabilities:0>16}\n",
        "namespaces": "\n".join(f"user:[{each}]" for each in namespaces.split()),
        "nice": f" {nice}\n",
    }


def parsed(**more):
    process = Process.parse(texts(**more))
    assert process is not None
    return process


def test_transparent_pages_are_part_of_what_is_resident():
    process = parsed(rss=400 << 10, thp=300 << 10)
    assert (process.resident_mib, process.huge_mib) == (400, 300)


def test_static_pages_come_on_top():
    process = parsed(rss=100 << 10, static=300 << 10)
    assert (process.resident_mib, process.huge_mib) == (400, 300)


def test_pages_of_each_size_count_by_their_size():
    process = parsed()
    assert process.node_mib == (65, 65)
    assert process.interleaved_mib == 2 + 128


def test_a_process_that_is_gone():
    assert Process.parse(dict.fromkeys(texts(), "")) is None


@pytest.mark.parametrize(
    ("capabilities", "namespaces", "has"),
    [("800000", "1 1", True), ("800000", "1 2", False), ("0", "1 1", False), ("1ffffffffff", "1 1", True)],
    ids=["it alone", "in a namespace of its own", "none", "all"],
)
def test_sys_nice_counts_in_the_machines_namespace_only(capabilities, namespaces, has):
    assert parsed(capabilities=capabilities, namespaces=namespaces).has_sys_nice is has


def test_it_says_what_an_owner_wants_to_know():
    said = str(parsed(rss=400 << 10, thp=300 << 10, capabilities="800000"))
    assert (
        said
        == "400 MiB in memory, 300 MiB of it on huge pages, on the NUMA nodes 65 + 65 MiB; nice -5, with SYS_NICE"
    )
    assert "NUMA" not in str(parsed(numa_maps=NUMA_MAPS.replace("N1=", "N0=")))


class TestComparedWithThePlan:
    weights_mib = planned(gpus=0).placement.host_weights_mib

    def test_all_is_as_planned(self):
        process = parsed(thp=self.weights_mib << 10)
        assert process.problem(planned(nodes=2, gpus=0)) is None
        assert list(process.doubts(planned(nodes=2, gpus=0), wants_sys_nice=False)) == []

    def test_memory_that_is_not_interleaved_is_a_problem_where_it_should_be(self):
        process = parsed(numa_maps=NUMA_MAPS.replace("interleave:0-1", "default"))
        assert "interleaved" in (process.problem(planned(nodes=2)) or "")
        assert process.problem(planned(nodes=1)) is None

    def test_small_pages_are_a_doubt_where_huge_ones_were_asked_for(self):
        process = replace(parsed(), huge_mib=int(0.4 * self.weights_mib))
        (doubt,) = process.doubts(planned(gpus=0), wants_sys_nice=False)
        assert doubt.startswith("huge_pages: ")
        assert list(process.doubts(planned(gpus=0, huge_pages="off"), wants_sys_nice=False)) == []

    def test_a_capability_that_does_not_count_is_a_doubt(self):
        process = parsed(thp=self.weights_mib << 10, capabilities="800000", namespaces="1 2")
        (doubt,) = process.doubts(planned(gpus=0), wants_sys_nice=True)
        assert doubt.startswith("sys_nice: ")
