"""What `moehost doctor` finds in a node's own words: system, disks, memory, services, the kernel's log."""

from __future__ import annotations

from typing import Any

import pytest

from moehost import settings
from moehost.doctor import examine, services, worst, xid
from moehost.doctor.disks import at, parse
from moehost.finding import Finding
from moehost.hardware import SOCKET_CHANNELS
from moehost.memory_modules import modules
from tests.fixtures import condition as node
from tests.fixtures import tuned_host
from tests.fixtures.condition import NOW_S, UNIT, UPTIME_S, answer, condition

TINY = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}


def described(**more: Any) -> settings.Node:
    return settings.read({"services": [TINY], **more})


def faults(
    described_as: settings.Node | None = None, machine: dict[str, str] | None = None, **texts: str
) -> list[Finding]:
    """What is not fine on the healthy node with these other texts."""
    said = answer(**texts) | {f"machine.{key}": text for key, text in (machine or {}).items()}
    found = examine(said, described_as or described())
    assert all(each.fix for each in found if each.level != "ok")
    assert not [each for each in found if each.level == "ok" and each.fix]
    return [each for each in found if each.level != "ok"]


def only(found: list[Finding]) -> Finding:
    (one,) = found
    return one


def test_nothing_is_wrong_with_a_healthy_node() -> None:
    found = examine(answer(), described())
    assert [each for each in found if each.level != "ok"] == []
    assert worst(found) == "ok"
    areas = {"system", "reboot", "disk", "services", "engine", "clock", "governor", "numa", "memory"}
    assert {each.area for each in found} == areas | {"huge pages", "tuning", "swap", "kernel log", "driver", "cards"}


def test_what_others_know_of_driver_and_containers_is_said_too() -> None:
    node = described(nvidia={"container_toolkit": True})
    found = examine(answer() | {"driver.uvm": "", "containers.cards": "1\n"}, node)
    assert {("driver", "error"), ("podman", "error"), ("cdi", "error")} <= {(each.area, each.level) for each in found}
    assert {each.area for each in examine(answer(), described(gpu="off"))}.isdisjoint({"driver", "cards", "cdi"})


def test_a_container_is_not_blamed_for_the_machine_that_it_is_in() -> None:
    texts = {"clock": "no\n", "governors": "powersave\n" * 8, "huge_pages": "always madvise [never]\n", "modules": ""}
    texts |= {"xids": "NVRM: Xid (PCI:0000:c1:00): 79, pid=1, GPU has fallen off the bus.\n", "cards": ""}
    assert faults(container="podman\n", **texts) == []
    assert {each.area for each in faults(**texts)} == {"clock", "governor", "huge pages", "kernel log"}


def test_a_node_that_says_almost_nothing() -> None:
    found = examine(answer(**dict.fromkeys(condition(), "")) | {"machine.lscpu": ""}, settings.read({}))
    assert [(each.area, each.level) for each in found if each.level != "ok"] == [
        ("system", "warning"),
        ("memory", "warning"),
    ]


class TestSystem:
    def test_a_reboot_that_is_owed(self) -> None:
        found = only(faults(reboot=f"{NOW_S - 3 * 86400}\nlinux-base\nlinux-image-6.12.57+deb13-amd64\n"))
        assert found == Finding(
            "reboot",
            "warning",
            "a reboot is owed for linux-base, linux-image-6.12.57+deb13-amd64, since 3 days",
            "systemctl reboot",
        )
        assert "that is long" in only(faults(reboot=f"{NOW_S - 30 * 86400}\n")).says

    def test_a_governor_that_waits_to_be_asked(self) -> None:
        found = only(faults(governors="powersave\n" * 30 + "performance\n" * 2))
        assert "powersave on 30 of 32 CPUs" in found.says
        assert faults(governors="") == []

    def test_a_clock_of_its_own(self) -> None:
        assert "timedatectl set-ntp true" in (only(faults(clock="no\n")).fix or "")

    def test_asked_without_root(self) -> None:
        assert "_sudo: True" in (only(faults(user="1000\n", modules="", xids="")).fix or "")


class TestDisks:
    def test_a_path_is_on_the_nearest_mount(self) -> None:
        there = parse(condition())
        paths = ("/srv/models", "/srv", "/srvx", "/")
        assert [(at(there, path) or there[0]).mount for path in paths] == ["/srv", "/srv", "/", "/"]

    @pytest.mark.parametrize(("free_mib", "level"), [(4000, "warning"), (900, "error")])
    def test_little_room(self, free_mib: int, level: str) -> None:
        disks = condition()["disks"].replace(" 2800000 ", f" {free_mib} ")
        found = only(faults(disks=disks))
        assert (found.area, found.level) == ("disk", level)
        assert "/srv has " in found.says
        assert "/srv/models/*" in (found.fix or "")

    def test_the_reserve_of_the_settings_counts(self) -> None:
        disks = condition()["disks"].replace(" 2800000 ", " 9000 ")
        assert faults(disks=disks) == []
        assert only(faults(described(free_space_reserve_mib=10000), disks=disks)).level == "error"

    def test_a_disk_that_went_read_only(self) -> None:
        mounts = condition()["mounts"].replace("/srv ext4 rw", "/srv ext4 ro")
        found = only(faults(mounts=mounts))
        assert (found.level, found.says) == ("error", "/srv is mounted read-only")
        assert "mount -o remount,rw /srv" in (found.fix or "")

    def test_a_store_on_a_disk_that_turns(self) -> None:
        assert "turns" in only(faults(rotational="1 /srv\n")).says
        # Virtual disks say so, too.
        disks = condition()["disks"].replace("/dev/nvme1n1", "/dev/vdb")
        assert faults(disks=disks, rotational="1 /srv\n") == []

    def test_disks_that_did_not_answer(self) -> None:
        assert faults(disks="") == []


class TestMemory:
    def test_half_of_the_channels(self) -> None:
        found = only(faults(modules=node.modules("ABCDEF")))
        assert found.says.startswith("6 of 12 memory channels have a module")

    def test_two_modules_on_a_channel_do_not_fill_another(self) -> None:
        text = "".join(node.MODULE.format(channel=each) for each in "AABBCCDDEEFF")
        assert only(faults(modules=text)).says.startswith("6 of 12 memory channels")

    @pytest.mark.parametrize(
        "names",
        [
            [f"DIMM_P0_{each}0" for each in "ABCDEFGHIJKL"],
            [f"P1-DIMM{each}1" for each in "ABCDEFGHIJKL"],
            [f"CPU1_DIMM_{each}1" for each in "ABCDEFGHIJKL"],
            [f"P0_Node0_Channel{each}_Dimm0" for each in range(12)],
            [f"slot {each}" for each in range(12)],
        ],
    )
    def test_boards_name_channels_in_their_own_ways(self, names: list[str]) -> None:
        text = "".join(
            node.MODULE.replace("DIMM 0", each).replace("P0 CHANNEL {channel}", "BANK 0") for each in names
        )
        assert faults(modules=text) == []
        assert "6 of 12" in only(faults(modules=text[: len(text) // 2])).says

    def test_slow_memory(self) -> None:
        slow = node.modules().replace("Configured Memory Speed: 6400", "Configured Memory Speed: 4800")
        assert "runs at 4800 MT/s; the modules can 6400, the processor 6400" in only(faults(modules=slow)).says
        old_name = slow.replace("Configured Memory Speed", "Configured Clock Speed")
        assert "4800" in only(faults(modules=old_name)).says
        # Slower modules than the processor could use are a choice.
        assert faults(modules=node.modules().replace("6400", "5600")) == []

    def test_modules_of_two_sizes(self) -> None:
        mixed = node.modules().replace("64 GB", "32 GB", 1)
        assert "differ (32 GiB, 64 GiB)" in only(faults(modules=mixed)).says
        assert modules(node.modules().replace("64 GB", "65536 MB"))[0].size_mib == 65536

    def test_without_root_or_dmidecode_nothing_is_said(self) -> None:
        assert faults(modules="") == []

    def test_numa(self) -> None:
        lscpu = answer()["machine.lscpu"]
        assert "BIOS" in (only(faults(machine={"has_memory": "0-15\n"})).fix or "")
        found = only(faults(machine={"has_memory": "0-15\n"}))
        assert (found.says.split(" (")[0], found.fix) == (
            "each L3 cache is a NUMA node",
            "in the BIOS: ACPI SRAT L3 Cache as NUMA Domain: Disabled",
        )
        assert (only(faults(machine={"has_memory": "0-3\n"})).fix or "").endswith("NPS1")
        two = lscpu.replace("Socket(s): 1", "Socket(s): 2").replace("NUMA node(s): 1", "NUMA node(s): 2")
        assert [each.area for each in faults(machine={"lscpu": two, "has_memory": "0-1\n"})] == ["memory"]

    def test_huge_pages(self) -> None:
        never = "always madvise [never]\n"
        assert only(faults(huge_pages=never)).fix == "pyinfra inventory deploy.py"
        assert "madvise" in (only(faults(described(tuning={"huge_pages": "off"}), huge_pages=never)).fix or "")
        meminfo = answer()["machine.meminfo"] + "HugePages_Total:     250\nHugepagesize:    1048576 kB\n"
        assert only(faults(machine={"meminfo": meminfo})).says.startswith("250.0 GiB are set aside")
        thp = described(services=[{**TINY, "server_args": ["-thp"]}])
        assert faults(thp, machine={"meminfo": meminfo}) == []
        assert faults(described(tuning={"huge_pages": "static"}), machine={"meminfo": meminfo}) == []

    def test_swap(self) -> None:
        head = condition()["swaps"]
        assert faults(swaps=f"{head}/swap.img file 8388604 1024 -2\n") == []
        assert "5.0 GiB are in swap" in only(faults(swaps=f"{head}/swap.img file 8388604 5242880 -2\n")).says


class TestTuning:
    def of(self, node: settings.Node, **texts: Any) -> list[Finding]:
        """What is said of the tuning of a host with these texts."""
        said = answer() | {f"tuning.{key}": text for key, text in tuned_host.texts(**texts).items()}
        return [each for each in examine(said, node) if each.area in ("tuning", "io", "cpu")]

    def test_a_host_that_has_not_been_tuned(self) -> None:
        found = self.of(described(tuning={"memory": "off"}))
        assert {each.fix for each in found} == {"pyinfra inventory deploy.py"}
        assert [each.says for each in found] == [
            "tuning.huge_pages is not in effect: /sys/kernel/mm/transparent_hugepage/enabled is always, not madvise",
            "tuning.io is not in effect: /sys/block/nvme1n1/queue/read_ahead_kb is 128, not 4096, and 1 more",
        ]

    def test_words_that_wait_for_a_reboot_and_pools_that_are_too_small(self) -> None:
        node = described(tuning={"huge_pages": "static", "memory": "off", "io": "off", "cpu": "off"})
        grub = 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT default_hugepagesz=2M hugepages=64"\n'
        waits = only(self.of(node, own_words=grub))
        assert "lacks default_hugepagesz=2M hugepages=64" in waits.says
        words = "ro default_hugepagesz=2M hugepages=64\n"
        short = only(self.of(node, own_words=grub, words=words, pages={0: 60}))
        assert short.says == "NUMA node 0 has 60 of 64 huge pages of 2M: 0.0 GiB lack"
        assert self.of(node, own_words=grub, words=words, pages={0: 64}) == []


def test_the_channels_give_the_bandwidths_of_the_data_sheets() -> None:
    gb_s = {channels * mt_s * 8 / 1000 for _, channels, mt_s in SOCKET_CHANNELS}
    assert gb_s == {614.4, 460.8, 230.4, 204.8, 409.6, 332.8, 358.4, 89.6}


def unit(**changed: str) -> str:
    """`systemctl show` of the service, with other properties."""
    lines = UNIT.format(unit="llama-server-tiny.service").splitlines()
    return "\n".join(f"{key}={changed.get(key, value)}" for key, _, value in (line.partition("=") for line in lines))


class TestServices:
    @pytest.mark.parametrize(
        ("state", "level", "says"),
        [
            ({"ActiveState": "inactive", "SubState": "dead"}, "error", "is inactive"),
            ({"ActiveState": "activating", "SubState": "auto-restart"}, "error", "does not start"),
            ({"ActiveState": "failed", "SubState": "failed"}, "error", "does not start"),
            ({"ActiveState": "activating", "SubState": "start-post"}, "warning", "is on its way (start-post)"),
            ({"NRestarts": "3"}, "warning", "restarted 3 time(s)"),
            ({"UnitFileState": "disabled"}, "warning", "does not start at boot"),
        ],
    )
    def test_a_service_that_is_not_well(self, state: dict[str, str], level: str, says: str) -> None:
        found = only(faults(units=unit(**state)))
        assert (found.area, found.level) == ("services", level)
        assert says in found.says

    def test_a_service_that_was_never_deployed(self) -> None:
        found = only(faults(units=""))
        assert (found.says, found.fix) == ("llama-server-tiny.service is not on the node", services.DEPLOY)

    def test_why_it_does_not_start(self) -> None:
        lines = [
            "Starting llama-server-tiny.service - llama-server: m...",
            "common_init: error: failed to load model '/srv/m.gguf'",
            "main: exiting due to model loading error",
            "llama-server-tiny.service: Main process exited, code=exited, status=1/FAILURE",
            "llama-server-tiny.service: Failed with result 'exit-code'.",
            "Failed to start llama-server-tiny.service - llama-server: m.",
        ]
        journal = "".join(f"llama-server-tiny.service {line}\n" for line in lines)
        failed = unit(ActiveState="failed", SubState="failed")
        assert only(faults(units=failed, journal=journal)).says == (
            "llama-server-tiny.service does not start: common_init: error: failed to load model '/srv/m.gguf'"
        )

    def test_why_it_ended_after_a_long_run(self) -> None:
        lines = ["failed to parse a request", "CUDA error: unspecified launch failure", "current device: 0"]
        journal = "".join(f"llama-server-tiny.service {line}\n" for line in lines)
        found = only(faults(units=unit(ActiveState="failed", SubState="failed"), journal=journal))
        assert found.says.endswith(": CUDA error: unspecified launch failure")

    @pytest.mark.parametrize(("name", "level"), [("moehost-gpu", "error"), ("moehost-fetch-m", "warning")])
    def test_other_units_of_moehost(self, name: str, level: str) -> None:
        failed = unit(ActiveState="failed", SubState="failed").replace("llama-server-tiny", name)
        found = only(faults(units=f"{unit()}\n\n{failed}\n"))
        assert (found.level, found.says) == (level, f"{name}.service has failed")

    def test_the_engine(self) -> None:
        assert only(faults(releases="")).says == "no engine is current"
        assert "the switch is not through" in only(faults(releases="current=a\nnext=b\nrelease=b\n")).says
        assert examine(answer(releases=""), settings.read({}))[-1].area != "engine"


def line(number: int, text: str = "pid=812, name=llama-server", age_s: int = 60, bus: str = "PCI:0000:c1:00") -> str:
    return f"{NOW_S - age_s}.123456 epyc kernel: NVRM: Xid ({bus}): {number}, {text}\n"


class TestXids:
    def test_a_card_that_fell_off_the_bus(self) -> None:
        found = only(faults(xids=line(79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")))
        assert (found.area, found.level) == ("kernel log", "error")
        assert found.says.startswith("Xid 79 of card 0000:c1:00, 60 seconds ago: the card has fallen off the bus")
        assert "pcie_aspm=off" in (found.fix or "")

    def test_one_from_before_the_last_boot_is_history(self) -> None:
        found = only(faults(xids=line(79, age_s=UPTIME_S + 600)))
        assert (found.level, "before the last boot" in found.says) == ("warning", True)

    def test_a_log_without_a_clock_is_of_this_boot(self) -> None:
        found = only(
            faults(xids="[  812.443210] NVRM: Xid (PCI:0000:c1:00): 119, pid=1, Timeout after 45s of waiting\n")
        )
        assert (found.level, found.says) == (
            "error",
            "Xid 119 of card 0000:c1:00: the card's firmware (GSP) does not answer",
        )
        assert "nvidia-smi --gpu-reset -i 0000:c1:00.0" in (found.fix or "")

    def test_the_same_again_is_one_finding(self) -> None:
        found = faults(xids=line(31, age_s=900) + line(31) + line(31, bus="PCI:0000:01:00"))
        assert [each.says.split(":")[0] for each in found] == ["Xid 31 of card 0000", "Xid 31 of card 0000"]
        assert "0000:c1:00, 2 times, 60 seconds ago" in found[0].says

    @pytest.mark.parametrize(
        ("action", "level", "fix"),
        [
            ("0x0 (None)", None, ""),
            ("0x1 (GPU Reset Required)", "error", "--gpu-reset"),
            ("0x2 (Node Reboot Required)", "error", "systemctl reboot; if it comes again"),
            ("0x4 (Drain and Reset)", "error", "--gpu-reset"),
        ],
    )
    def test_what_the_driver_asks_for(self, action: str, level: str | None, fix: str) -> None:
        found = faults(xids=line(154, f"GPU recovery action changed from 0x0 (None) to {action}"))
        assert [each.level for each in found] == ([level] if level else [])
        assert all(fix in (each.fix or "") for each in found)

    def test_one_that_nobody_knows(self) -> None:
        assert "docs.nvidia.com" in (only(faults(xids=line(999))).fix or "")

    def test_the_known_ones_are_all_there(self) -> None:
        wanted = {13, 31, 43, 45, 48, 61, 62, 63, 64, 69, 74, 79, 92, 94, 95, 109, 119, 120, 140}
        assert wanted <= set(xid.MEANINGS)
        assert all((each.fix is None) == (each.level == "ok") for each in xid.MEANINGS.values())

    def test_other_lines_are_none(self) -> None:
        assert faults(xids="-- No entries --\nNVRM: GPU at PCI:0000:c1:00: GPU-0\n") == []
        # As a driver of long ago wrote it.
        assert "Xid 14" in only(faults(xids="[1.0] NVRM: Xid (0000:03:00): 14, Channel 00000001\n")).says


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ('{"seen": "2026-11-29T17:42:03Z", "files": {"m-1.gguf": null, "m-2.gguf": "ab"}}', "m-1.gguf, m-2.gguf is"),
        ('{"seen": "files', "a file is"),
    ],
)
def test_a_model_that_an_inspection_found_damaged(note: str, says: str) -> None:
    found = only(faults(damaged=f"/srv/models/m/damaged.json:{note}\n"))
    assert (found.area, found.level) == ("models", "error")
    assert says in found.says and found.says.startswith("/srv/models/m: ")
    assert "deploy.py" in (found.fix or "")
