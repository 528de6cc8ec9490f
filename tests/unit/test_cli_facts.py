"""`moehost facts` as an owner calls it: for people, for programs, and hosts that don't answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost.cli import main
from tests.fixtures import condition, tuned_host

PEOPLE = """\
host             a machine
processor        AMD EPYC 9175F 16-Core Processor: 1 socket(s), 16 cores, 32 threads
NUMA             NPS2, 16 L3 cache(s); memory of the nodes 0: 384.0 GiB, 1: 384.0 GiB
memory           768.0 GiB; 12 of 12 channels filled, 6400 MT/s of 6400
frequency        acpi-cpufreq; schedutil on 2; boost on
wake-up          limit for each core 0 us (0: none), for all 2000000000 us
huge pages       transparent: always, defrag: madvise
                 node 0: 32 static pages of 2 MiB, 32 free
                 node 1: 64 static pages of 2 MiB, 64 free
sysctl           kernel.numa_balancing = 1
                 vm.zone_reclaim_mode = 0
                 vm.swappiness = 60
                 vm.dirty_bytes = 0
                 vm.dirty_ratio = 20
                 vm.dirty_background_bytes = 0
                 vm.dirty_background_ratio = 10
                 vm.min_free_kbytes = 90112
models           /srv/models on /dev/nvme1n1p1 (xfs, rw,relatime)
                 disk nvme1n1: read-ahead 128 KiB, scheduler mq-deadline, does not turn
limits           memlock 8388608 bytes
cgroup           version 2
command line     BOOT_IMAGE=/boot/vmlinuz-6.12.48+deb13-amd64 root=UUID=1 ro quiet
"""


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
    monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")


def facts(folder: Path, *arguments: str, data: dict[str, Any] | None = None, **changed: Any) -> Result:
    """The command, with a host that answers as the fixture does, with other texts by their keys."""
    texts = tuned_host.texts(2, pages={0: 32, 1: 64}, modules=condition.modules()) | changed
    said = "".join(f"=== {key}\n{text}" for key, text in texts.items())
    host = ("@fake/epyc", {"fake_responses": {"=== lscpu": said.splitlines()}, **(data or {})})
    inventory = folder / "hosts.py"
    inventory.write_text(f"nodes = {[host, ('@fake/mute', {})]!r}\n")
    return CliRunner().invoke(main, ["facts", *arguments, "--inventory", str(inventory)])


def test_text_for_people(tmp_path: Path) -> None:
    result = facts(tmp_path, "@fake/epyc")
    assert (result.exit_code, result.stdout) == (0, PEOPLE)


def test_the_contract(tmp_path: Path) -> None:
    data = json.loads(facts(tmp_path, "@fake/epyc", "--json").stdout)
    assert data["memory_mib"] == 786432
    assert data["numa_nodes"][1] == {"node": 1, "memory_mib": 393216}
    assert data["huge_pages"]["pools"][1] == {"node": 1, "page_mib": 2, "pages": 64, "free_pages": 64}


def test_a_container_without_root(tmp_path: Path) -> None:
    result = facts(tmp_path, "@fake/epyc", container="podman\n", modules="", memlock="", mounts="")
    assert "host             a container (podman)\n" in result.stdout
    assert "modules not known (needs root and dmidecode)" in result.stdout


@pytest.mark.parametrize(
    ("target", "code", "line"),
    [("@fake/nobody", 2, "is no host of"), ("@fake/mute", 1, "can't be asked: it gave no answer")],
)
def test_a_mistake_is_one_line(tmp_path: Path, target: str, code: int, line: str) -> None:
    result = facts(tmp_path, target)
    assert (result.exit_code, result.stdout) == (code, "")
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_settings_and_answers_that_are_wrong(tmp_path: Path) -> None:
    assert facts(tmp_path, "@fake/epyc", data={"a": 1}).exit_code == 2
    result = facts(tmp_path, "@fake/epyc", lscpu="nothing\n")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
