"""What a host is, by its own words: NUMA modes, memory, pools, the disk of the models."""

from __future__ import annotations

import pytest

from moehost import hardware, topology
from moehost.topology import Pool, numa
from tests.fixtures import condition
from tests.fixtures.tuned_host import BLOCKS, MOUNTS, lscpu, texts, values

# A rented machine of two cores in a virtual machine, asked with util-linux 2.38 (flags shortened).
RENTED = {
    "lscpu": """\
CPU(s):                                  2
Model name:                              AMD EPYC
Thread(s) per core:                      1
Core(s) per socket:                      2
Socket(s):                               1
Flags:                                   fpu pse36 pdpe1gb rdtscp hypervisor avx512f
L3 cache:                                32 MiB (1 instance)
NUMA node(s):                            1
NUMA node0 CPU(s):                       0,1
""",
    "meminfo": "MemTotal:       24684096 kB\n",
    "node_memory": "Node 0 MemTotal:       24684096 kB\n",
    "has_memory": "0\n",
    "l3_ids": "0\n0\n",
    "container": "docker\n",
    "virtual_machine": "kvm\n",
    "values": "/sys/kernel/mm/transparent_hugepage/enabled:always [madvise] never\n"
    "/sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages:0\n"
    "/sys/block/vda/queue/rotational:1\n/sys/block/vda/queue/read_ahead_kb:8192\n"
    "/sys/block/vda/queue/scheduler:none [mq-deadline] kyber bfq \n",
    "mounts": "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict,resuid=65534\n",
    "blocks": "zram0 disk 253:0 \nvda disk 254:0 \n",
    "cgroup": "tmpfs\n",
}


def host(folder: str = "/srv/models", **changed: str) -> topology.Topology:
    return topology.parse(texts(**changed), folder)


@pytest.mark.parametrize(
    ("nodes", "mode", "level"),
    [(1, "NPS1", "ok"), (2, "NPS2", "warning"), (4, "NPS4", "warning"), (16, "L3", "warning")],
)
def test_what_the_firmware_makes_numa_nodes_of(nodes: int, mode: str, level: str) -> None:
    found = topology.parse(texts(nodes), "/srv/models")
    assert (found.numa_mode, numa(found.cpu).level) == (mode, level)
    assert found.memory_mib == dict.fromkeys(range(nodes), 768 * 1024 // nodes)


def test_two_sockets_are_two_nodes_and_no_fault() -> None:
    found = host(lscpu=lscpu(2, sockets=2), has_memory="0-1\n", l3_ids="\n".join(map(str, range(32))))
    assert (found.numa_mode, numa(found.cpu).level) == ("NPS1", "ok")
    assert host(lscpu=lscpu(1, sockets=2), has_memory="0\n").numa_mode == "NPS0"


def test_a_node_without_memory_is_none_to_spread_over() -> None:
    assert host(node_memory="Node 0 MemTotal: 1048576 kB\nNode 1 MemTotal: 0 kB\n").memory_mib == {0: 1024}


def test_pools_of_a_host() -> None:
    found = topology.parse(texts(2, pages={0: 32, 1: 64}), "/srv/models")
    assert found.pools == (Pool(0, 2, 32, 32), Pool(1, 2, 64, 64))


def test_a_rented_machine_in_its_own_words() -> None:
    found = topology.parse({**texts(), "words": "", "boot_words": "", "has_grub": "", **RENTED}, "/srv/models")
    assert (found.numa_mode, found.container, found.virtual_machine) == ("NPS1", "docker", "kvm")
    assert (found.cgroup_version, found.has_1g_pages, found.has_grub) == (1, True, False)
    assert found.disk
    assert (found.disk.disk, found.disk.layers, found.disk.is_rotational) == ("vda", (), False)
    data = found.to_json("/srv/models")
    assert data["huge_pages"]["transparent"] == "madvise"
    assert data["models_dir"]["scheduler"] == "mq-deadline"
    assert data["memory_channels"]["filled"] is None


def test_units_are_in_the_keys() -> None:
    data = host(modules=condition.modules("ABCDEF")).to_json("/srv/models")
    assert data["memory_mib"] == 786432
    assert data["memory_channels"] == {"filled": 6, "of": 12, "speed_mt_s": 6400, "rated_mt_s": 6400}
    assert data["frequency"] == {
        "drivers": ["acpi-cpufreq"],
        "governors": {"schedutil": 2},
        "boost": True,
        "resume_latency_us": ["0"],
        "cpu_dma_latency_us": 2000000000,
    }
    assert data["limits"] == {"memlock_bytes": 8388608}
    assert data["models_dir"]["read_ahead_kib"] == 128
    assert (data["cpu"]["smt"], data["cpu"]["l3_domains"]) == (True, 16)


@pytest.mark.parametrize(
    ("folder", "mounts", "blocks", "disk", "layers"),
    [
        ("/srv/models", MOUNTS, BLOCKS, "nvme1n1", ()),
        ("/var/models", MOUNTS, BLOCKS, "nvme0n1", ()),
        ("/srvx", MOUNTS, BLOCKS, "nvme0n1", ()),
        (
            "/srv/models",
            MOUNTS.replace("259:5", "254:0"),
            f"{BLOCKS}dm-0 lvm 254:0 nvme0n1p2\n",
            "nvme0n1",
            ("lvm",),
        ),
        (
            "/srv",
            MOUNTS.replace("259:5", "9:0"),
            f"{BLOCKS}md0 raid1 9:0 nvme0n1p2\nmd0 raid1 9:0 nvme1n1p1\n",
            "",
            ("raid1",),
        ),
        ("/srv", MOUNTS.replace("259:5", "0:31").replace("xfs /dev/nvme1n1p1", "nfs4 nas:/srv"), BLOCKS, "", ()),
        (
            "/srv",
            f"{MOUNTS}31 30 259:2 / /srv rw,sync - ext4 /dev/nvme0n1p2 rw\n",
            BLOCKS,
            "nvme0n1",
            (),
        ),
    ],
    ids=["partition", "root", "a name that only begins so", "lvm", "raid", "network", "mounted over"],
)
def test_the_disk_of_the_models(folder: str, mounts: str, blocks: str, disk: str, layers: tuple[str, ...]) -> None:
    found = host(folder, mounts=mounts, blocks=blocks).disk
    assert found
    assert (found.disk, found.layers) == (disk, layers)


def test_a_virtual_disk_says_that_it_turns() -> None:
    for name, turns in (("vdb", False), ("xvda", False), ("sda", True)):
        blocks = f"{name} disk 259:5\n"
        kernel = values() | {f"/sys/block/{name}/queue/rotational": "1"}
        found = topology.parse(texts(kernel=kernel, blocks=blocks), "/srv").disk
        assert found
        assert found.is_rotational == turns


def test_a_host_that_says_nothing() -> None:
    with pytest.raises(hardware.HardwareError):
        topology.parse(dict.fromkeys(texts(), ""), "/srv/models")
