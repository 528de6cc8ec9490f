"""How a host should be tuned: the values for each setting, and what is said where something can't be had."""

from __future__ import annotations

from typing import Any

import pytest

from moehost import settings, topology
from moehost.settings_tuning import Tuning as Wish
from moehost.tuning import Tuning, tuning
from moehost.tuning_before import Before, to_write
from tests.fixtures.tuned_host import BLOCKS, CPUS, DISK, MOUNTS, VALUES, texts, values

MIB = 1 << 20
MEMORY = "/proc/sys/vm"
THP = "/sys/kernel/mm/transparent_hugepage"
OFF = {"numa": "off", "huge_pages": "off", "cpu": "off", "memory": "off", "io": "off"}


def host(nodes: int = 1, **more: Any) -> topology.Topology:
    return topology.parse(texts(nodes, **more), "/srv/models")


def wanted(there: topology.Topology | None = None, before: dict[str, str] | None = None, **wish: Any) -> Tuning:
    return tuning(Wish.model_validate(wish), there or host(), before or {})


def by_path(goal: Tuning) -> dict[str, str]:
    return {each.path: each.value for each in goal.knobs}


def test_all_areas_at_once() -> None:
    assert by_path(wanted()) == {
        f"{THP}/enabled": "madvise",
        f"{THP}/defrag": "madvise",
        f"{CPUS}/cpufreq/policy0/scaling_governor": "performance",
        f"{CPUS}/cpufreq/policy1/scaling_governor": "performance",
        f"{MEMORY}/dirty_background_bytes": str(512 * MIB),
        f"{MEMORY}/dirty_bytes": str(2048 * MIB),
        f"{MEMORY}/swappiness": "10",
        f"{MEMORY}/min_free_kbytes": "786432",
        f"{DISK}/read_ahead_kb": "4096",
        f"{DISK}/scheduler": "none",
    }


@pytest.mark.parametrize("area", OFF)
def test_an_area_that_is_off_has_no_values(area: str) -> None:
    assert {each.area for each in wanted(host(2), **{area: "off"}).knobs} == set(OFF) - {area}
    assert wanted(host(2), **OFF) == Tuning((), (), wanted(host(2), **OFF).warnings)


def test_several_nodes() -> None:
    goal = by_path(wanted(host(2)))
    assert goal["/proc/sys/kernel/numa_balancing"] == goal[f"{MEMORY}/zone_reclaim_mode"] == "0"


def test_static_pages_leave_transparent_ones_alone() -> None:
    assert not [path for path in by_path(wanted(huge_pages="static")) if path.startswith(THP)]


def test_what_a_virtual_machine_lacks_is_left_out() -> None:
    few = {path: value for path, value in VALUES.items() if "cpufreq" not in path and "numa" not in path}
    goal = wanted(host(2, kernel=few), cpu_latency_us=20)
    assert {each.area for each in goal.knobs} == {"numa", "huge_pages", "cpu", "memory", "io"}
    assert not [path for path in by_path(goal) if "cpufreq" in path or "balancing" in path]


def test_a_governor_that_the_driver_has_not() -> None:
    there = host(kernel=values(scaling_available_governors="powersave"))
    assert not [path for path in by_path(wanted(there)) if "cpufreq" in path]


@pytest.mark.parametrize(("latency_us", "value"), [(20, "20"), (0, "n/a")])
def test_boost_and_wake_up_are_left_alone_unless_they_are_set(latency_us: int, value: str) -> None:
    goal = by_path(wanted(boost=False, cpu_latency_us=latency_us))
    assert goal[f"{CPUS}/cpufreq/boost"] == "0"
    assert goal[f"{CPUS}/cpu1/power/pm_qos_resume_latency_us"] == value
    assert by_path(wanted(boost=True))[f"{CPUS}/cpufreq/boost"] == "1"
    assert not {"boost", "cpu_latency_us"} & set(by_path(wanted(boost=False, cpu="off")))


@pytest.mark.parametrize(("total_gib", "most_mib"), [(4, 512), (16, 2048), (768, 2048)])
def test_write_back_in_absolute_sizes(total_gib: int, most_mib: int) -> None:
    goal = by_path(wanted(host(total_gib=total_gib)))
    assert goal[f"{MEMORY}/dirty_bytes"] == str(most_mib * MIB)
    assert goal[f"{MEMORY}/dirty_background_bytes"] == str(most_mib // 4 * MIB)


def test_what_the_kernel_has_is_never_lowered() -> None:
    there = host(total_gib=64, kernel=values(read_ahead_kb="8192"))
    assert not {f"{MEMORY}/min_free_kbytes", f"{DISK}/read_ahead_kb"} & set(by_path(wanted(there)))
    # By what it had before, once it is tuned; and more than that is as good.
    there = host(kernel=values(min_free_kbytes="786432"))
    assert by_path(wanted(there, {f"{MEMORY}/min_free_kbytes": "90112"}))[f"{MEMORY}/min_free_kbytes"] == "786432"
    more = host(kernel=values(min_free_kbytes="900000"))
    goal = wanted(more, {f"{MEMORY}/min_free_kbytes": "90112"})
    assert f"{MEMORY}/min_free_kbytes" not in {each.path for each in goal.drifted(more)}


def test_a_disk_that_turns_and_one_that_can_not_be_told() -> None:
    turning = host(kernel=values(rotational="1"), mounts=MOUNTS.replace("relatime", "strictatime"))
    goal = wanted(turning)
    assert by_path(goal)[f"{DISK}/scheduler"] == "mq-deadline"
    assert [each.fix for each in goal.warnings] == ["add noatime to the options of /srv in /etc/fstab"]
    mounts = MOUNTS.replace("259:5", "254:0").replace("rw,", "rw,sync,")
    layered = host(blocks=f"{BLOCKS}dm-0 crypt 254:0 nvme1n1p1\n", mounts=mounts)
    goal = wanted(layered)
    assert not [path for path in by_path(goal) if path.startswith("/sys/block")]
    assert [each.says for each in goal.warnings] == [
        "/srv lies on crypt: read-ahead and scheduler are left alone",
        "/srv is mounted with sync: each write of a download waits for the disk",
    ]
    assert wanted(layered, io="off").warnings == ()


def test_what_only_the_firmware_can_change() -> None:
    (found,) = wanted(host(16)).warnings
    assert found.fix == "in the BIOS: ACPI SRAT L3 Cache as NUMA Domain: Disabled"
    fewer = {path: value for path, value in VALUES.items() if not path.endswith("/boost")}
    (found,) = wanted(host(kernel=fewer), boost=False).warnings
    assert found.says == "tuning.boost: this kernel's frequency driver has no switch for it"


def test_words_come_in_order() -> None:
    assert wanted(kernel_parameters=["iommu=pt", "pcie_aspm=off"]).words == ("iommu=pt", "pcie_aspm=off")


def test_static_pages_need_an_engine_that_takes_them() -> None:
    with pytest.raises(settings.SettingsError) as refused:
        settings.read({"tuning": {"huge_pages": "static"}, "engine": {"source": "package"}})
    (line,) = refused.value.lines
    assert line.endswith("tuning.huge_pages: 'static' is for ik_llama.cpp, a package's engine can't use such pages; "
                         "write 'thp', or engine: {'source': 'git'}")  # fmt: skip


def test_pools_are_described_once() -> None:
    words = {"kernel_parameters": ["hugepages=10"]}
    assert settings.read({"tuning": words}).tuning.kernel_parameters == ["hugepages=10"]
    with pytest.raises(settings.SettingsError, match="hugepages=10 is what huge_pages: 'static' writes"):
        settings.read({"tuning": {"huge_pages": "static", **words}})


class TestBefore:
    def test_only_what_is_about_to_change_is_recorded_and_only_once(self) -> None:
        there = host()
        before = Before().recorded(wanted(there, kernel_parameters=["iommu=pt", "quiet"]), there)
        assert before.values == {
            f"{THP}/enabled": "always",
            f"{CPUS}/cpufreq/policy0/scaling_governor": "schedutil",
            f"{CPUS}/cpufreq/policy1/scaling_governor": "schedutil",
            f"{MEMORY}/dirty_background_bytes": "0",
            f"{MEMORY}/dirty_background_ratio": "10",
            f"{MEMORY}/dirty_bytes": "0",
            f"{MEMORY}/dirty_ratio": "20",
            f"{MEMORY}/swappiness": "60",
            f"{MEMORY}/min_free_kbytes": "90112",
            f"{DISK}/read_ahead_kb": "128",
            f"{DISK}/scheduler": "mq-deadline",
        }
        # `quiet` is somebody else's.
        assert before.words == ("iommu=pt",)
        drifted = host(kernel=values(swappiness="30"))
        assert before.recorded(wanted(drifted, dict(before.values)), drifted).values == before.values
        assert Before.parse(before.text) == before

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"values": 1, "words": []}', '{"values": {}}'])
    def test_a_file_that_says_nothing(self, text: str) -> None:
        assert Before.parse(text) == Before()
        assert Before().text == ""

    def test_a_limit_in_two_units_goes_back_in_the_one_that_was_used(self) -> None:
        tuned = host(kernel=values(dirty_bytes="1", dirty_ratio="0", swappiness="10"))
        recorded = {f"{MEMORY}/dirty_bytes": "0", f"{MEMORY}/dirty_ratio": "20", f"{MEMORY}/swappiness": "60"}
        before = Before(recorded)
        assert before.undone(wanted(tuned)) == {}
        undone = before.undone(wanted(tuned, memory="off"))
        assert to_write(undone, tuned) == {f"{MEMORY}/dirty_ratio": "20", f"{MEMORY}/swappiness": "60"}
        assert before.kept(wanted(tuned, memory="off"), tuned) == Before()

    def test_a_value_that_is_gone_is_not_written(self) -> None:
        assert to_write({"/sys/block/sdz/queue/scheduler": "none"}, host()) == {}

    def test_words_are_kept_until_no_boot_has_them(self) -> None:
        before, goal = Before({}, ("iommu=pt",)), wanted()
        assert before.stale_words(goal) == ["iommu=pt"]
        assert before.kept(goal, host(words="ro iommu=pt\n")) == before
        assert before.kept(goal, host(boot_words="linux /boot/vmlinuz ro iommu=pt\n")) == before
        assert before.kept(goal, host()) == Before()
