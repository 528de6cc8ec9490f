"""Services whose models lie on huge pages that the kernel sets aside at boot, and the way back.

The engine is the stand-in (see engine.py), which maps its model as ik_llama.cpp does; the pages are real.
"""

import re

import pytest

from tests.fixtures.node import changes
from tests.vm_node.figures import measured

TUNED = "Host tuning | Tune the host, reboot it if need be"
POOLS = "/sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
RUN = ["Service | Run tiny, warm", "Service | Run boxed, warm"]


@pytest.fixture(scope="module")
def static(node, both):
    """The settings with static pages, and what the deploy that reboots for them said."""
    settings = {**both, "tuning": {"huge_pages": "static", "kernel_parameters": ["iommu=pt"]}}
    with measured("static huge pages, with a reboot by the deploy"):
        done = node.deploy(settings)
    assert {TUNED, *RUN} <= set(changes(done))
    yield settings, done.stderr
    with measured("the way back, with another reboot"):
        assert {TUNED, *RUN} <= set(changes(node.deploy(both)))
    assert not {"iommu=pt", "default_hugepagesz=2M"} & set(node.run("cat /proc/cmdline").split())
    assert "moehost" not in node.run("ls /etc/default/grub.d")


def pids(node):
    native = node.run(f"systemctl show --property MainPID --value {node.unit}")
    return [native, node.run("podman inspect --format '{{.State.Pid}}' llama-server-boxed")]


def test_the_command_line_has_a_pool_for_each_service_on_both_nodes(node, static):
    size = int(node.run("stat --format %s /srv/models/tiny-qwen35moe/tiny-qwen35moe.gguf"))
    pages = 2 * -(-size // (2 << 20))
    words = node.run("cat /proc/cmdline").split()
    assert f"hugepages=0:{pages - pages // 2},1:{pages // 2}" in words
    assert "iommu=pt" in words
    # Somebody else's are still there.
    assert any(word.startswith("root=") for word in words)
    assert node.run(f"cat {POOLS}").split() == [str(pages - pages // 2), str(pages // 2)]


def test_both_models_lie_on_them(node, static):
    for pid in pids(node):
        mapped_kib = int(node.run(f"awk '/^Private_Hugetlb:/ {{ print $2 }}' /proc/{pid}/smaps_rollup"))
        assert mapped_kib >= 12 << 10
    assert node.run("awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo") == "0"


def test_their_pages_come_from_both_nodes(node, static):
    for pid in pids(node):
        huge = node.run(f"grep kernelpagesize_kB=2048 /proc/{pid}/numa_maps")
        assert "interleave" in huge
        assert re.search(r" N0=\d+ N1=\d+ ", huge)


def test_the_deploy_says_what_came_of_it(static):
    said = static[1]
    assert re.search(r"tiny: \d+ MiB in memory, \d+ MiB of it on huge pages, on the NUMA nodes \d+ \+ \d+ MiB", said)
    assert "doubt" not in said


def test_a_second_run_changes_nothing(node, static):
    assert changes(node.deploy(static[0])) == []


def test_a_start_without_its_pool_fails_with_a_sentence(node, static):
    node.run(f"systemctl stop {node.unit} && cat {POOLS} >/run/pools && for each in {POOLS}; do echo 0 >$each; done")
    try:
        assert node.run(f"systemctl start {node.unit} 2>/dev/null || echo failed") == "failed"
        said = node.run(f"journalctl --output cat --lines 30 --unit {node.unit}")
        # What the other service holds counts beside the pools that are left.
        assert re.search(r"the model needs 14 MiB of huge pages, \d+ MiB are free", said)
    finally:
        node.run(
            f"exec 3</run/pools; for each in {POOLS}; do read -r pages <&3; echo $pages >$each; done; "
            f"systemctl reset-failed {node.unit}; systemctl start {node.unit}"
        )
    assert node.answers("tiny", 8080)
