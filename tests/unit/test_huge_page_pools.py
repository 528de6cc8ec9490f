"""Static huge pages: how many, where, and how the kernel is told."""

from __future__ import annotations

import pytest

from moehost import topology
from moehost.huge_page_pools import PoolError, Pools, lacking, of_words, pools, reserved_mib
from tests.fixtures.tuned_host import lscpu, texts

GIB = 1 << 30


def host(nodes: int = 1, **more: object) -> topology.Topology:
    return topology.parse(texts(nodes, **more), "/srv/models")  # type: ignore[arg-type]


def test_each_file_has_pages_of_its_own() -> None:
    # 2 MiB and a byte are two pages; together they would be fewer.
    assert pools([2 << 20, (2 << 20) + 1, 1], "2M", host()).pages == {0: 4}


def test_the_nodes_share_evenly() -> None:
    found = pools([5 * GIB], "1G", host(2))
    assert found.pages == {0: 3, 1: 2}
    assert found.total_mib == 5120


@pytest.mark.parametrize(
    ("size", "pages", "line"),
    [
        ("2M", {0: 96}, "default_hugepagesz=2M hugepages=96"),
        ("2M", {0: 32, 1: 64}, "default_hugepagesz=2M hugepages=0:32,1:64"),
        ("1G", {0: 250}, "default_hugepagesz=1G hugepagesz=1G hugepages=250"),
        ("1G", {0: 125, 1: 125}, "default_hugepagesz=1G hugepagesz=1G hugepages=0:125,1:125"),
    ],
)
def test_the_words_for_the_kernel_and_back(size: str, pages: dict[int, int], line: str) -> None:
    found = Pools(size, pages)
    assert " ".join(found.words) == line
    assert of_words(["ro", *line.split(), "quiet"], pages) == found


def test_a_command_line_without_pools() -> None:
    assert of_words(["ro", "quiet", "default_hugepagesz=1G"], [0]) is None


@pytest.mark.parametrize(("total_gib", "left_gib"), [(2, 1), (4, 1), (64, 16), (256, 48), (768, 48)])
def test_what_must_be_left(total_gib: int, left_gib: int) -> None:
    assert reserved_mib(total_gib * 1024) == left_gib * 1024


def test_too_much_is_refused_with_what_there_is() -> None:
    assert pools([720 * GIB], "1G", host()).pages == {0: 720}
    with pytest.raises(PoolError) as refused:
        pools([600 * GIB, 121 * GIB], "1G", host())
    assert str(refused.value) == (
        "tuning.huge_pages: the services' models need 721.0 GiB of huge pages, and 48.0 GiB must be left of 768.0 "
        "GiB; write 'thp', or take smaller models"
    )


def test_pages_that_the_processor_has_not() -> None:
    with pytest.raises(PoolError, match="has no pages of 1 GiB"):
        pools([GIB], "1G", host(lscpu=lscpu().replace(" pdpe1gb", "")))


def test_what_the_kernel_could_not_set_aside() -> None:
    there = host(2, pages={0: 32, 1: 30})
    assert lacking(Pools("2M", {0: 32, 1: 64}), there) == [
        "NUMA node 1 has 30 of 64 huge pages of 2M: 0.1 GiB lack",
    ]
    assert lacking(Pools("2M", {0: 32, 1: 30}), there) == []
