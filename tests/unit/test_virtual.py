"""The virtual node: QEMU's command line, what its disk is made by, and which process is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moehost import virtual, virtual_disk
from moehost.sandbox import SandboxError
from moehost.virtual import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine in a folder of its own, which does not run."""
    monkeypatch.setattr(virtual, "MACHINES", tmp_path)
    (tmp_path / "one").mkdir()
    return Machine("one")


def after(words: list[str], option: str) -> list[str]:
    """The values of an option, in order."""
    return [value for each, value in pairwise(words) if each == option]


def test_it_has_two_sockets_with_a_numa_node_each_and_the_name_of_the_real_processor(machine: Machine) -> None:
    words = virtual.command(machine, Path("boot.iso"), 2222, "tcg")
    assert after(words, "-accel") == ["tcg,thread=multi"]
    assert after(words, "-cpu") == ["max,model-id=AMD EPYC 9175F 16-Core Processor,avx=off,avx2=off,fma=off,f16c=off"]
    assert after(words, "-smp") == ["4,sockets=2,cores=2,threads=1"]
    assert after(words, "-numa") == [
        "node,nodeid=0,cpus=0-1,memdev=memory0",
        "node,nodeid=1,cpus=2-3,memdev=memory1",
    ]
    assert sum(int(each.rpartition("=")[2].rstrip("M")) for each in after(words, "-object")) == virtual.MEMORY_MIB


def test_it_can_reboot_and_is_reached_from_this_computer_only(machine: Machine) -> None:
    words = virtual.command(machine, Path("boot.iso"), 2222, "kvm")
    assert after(words, "-accel") == ["kvm"]
    assert after(words, "-cpu") == ["max,model-id=AMD EPYC 9175F 16-Core Processor"]
    assert "-no-reboot" not in words
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in after(words, "-nic")[0]


def test_the_models_disk_is_another_one_than_the_root_disk(machine: Machine) -> None:
    root, models = after(virtual.command(machine, Path("boot.iso"), 2222, "tcg"), "-drive")
    assert f"file={machine.folder.resolve()}/root.qcow2" in root
    assert f"file={machine.folder.resolve()}/models.img" in models


def test_ssh_and_pyinfra_believe_the_known_host_key_only(machine: Machine) -> None:
    (machine.folder / "port").write_text("2222\n")
    assert "StrictHostKeyChecking=yes" in machine.ssh
    assert machine.inventory_data["ssh_strict_host_key_checking"] == "yes"
    assert machine.inventory_data["ssh_known_hosts_file"] == f"{machine.folder.resolve()}/known_hosts"


def test_a_pid_that_is_another_programs_is_not_its_own(machine: Machine) -> None:
    assert machine.pid is None
    (machine.folder / "pid").write_text(f"{os.getpid()}\n")
    assert machine.pid is None


def test_its_own_process_is_ended_and_no_other(machine: Machine) -> None:
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    own = subprocess.Popen([*sleep, "-pidfile", f"{machine.folder.resolve()}/pid"], stdout=subprocess.PIPE)
    # Only then it surely has its own command line.
    assert own.stdout and own.stdout.readline()
    (machine.folder / "pid").write_text(f"{own.pid}\n")
    other = subprocess.Popen(sleep)
    try:
        assert machine.pid == own.pid
        virtual.stop(machine)
        assert own.poll() is not None
        assert other.poll() is None
    finally:
        for each in (own, other):
            each.kill()
            each.wait()


@pytest.mark.parametrize(("ended", "chosen"), [(33, "kvm"), (1, "tcg"), (None, "tcg")])
def test_kvm_is_taken_where_a_boot_sector_comes_through(
    monkeypatch: pytest.MonkeyPatch, ended: int | None, chosen: str
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        if ended is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, ended)

    monkeypatch.setattr(virtual.os, "access", lambda *_: True)
    monkeypatch.setattr(virtual.subprocess, "run", run)
    assert virtual.accelerator() == chosen


def test_the_boot_sector_is_one() -> None:
    assert len(virtual.BOOT_SECTOR) == 512
    assert virtual.BOOT_SECTOR.endswith(b"\x55\xaa")


def test_another_recipe_is_another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    before = virtual_disk.folder(())
    assert virtual_disk.folder(("podman",)) != before
    monkeypatch.setattr(virtual_disk, "FILES", {**virtual_disk.FILES, "/etc/hostname": "other\n"})
    assert virtual_disk.folder(()) != before


def test_what_finishes_the_disk_writes_the_files_and_keys(tmp_path: Path) -> None:
    key, root = tmp_path / "id_ed25519", tmp_path / "root"
    for name in ("id_ed25519", "id_ed25519.pub", "host_id_ed25519", "host_id_ed25519.pub"):
        (tmp_path / name).write_text(name)
    ssh = root / "etc/ssh"
    ssh.mkdir(parents=True)
    (ssh / "ssh_host_rsa_key").write_text("made by the package")
    # A link of the package's must not lead out of the root.
    (root / "etc/resolv.conf").symlink_to(tmp_path / "elsewhere")
    for hook in virtual_disk.customize(virtual_disk.FILES, str(key)):
        if not hook.startswith("chroot "):
            subprocess.run(["sh", "-ec", hook, "sh", str(root)], check=True)
    for path, text in virtual_disk.FILES.items():
        assert Path(f"{root}{path}").read_text() == text
    assert not (tmp_path / "elsewhere").exists()
    assert (root / "root/.ssh/authorized_keys").read_text() == "id_ed25519.pub"
    assert (root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in ssh.iterdir()) == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
    assert (ssh / "ssh_host_ed25519_key").read_text() == "host_id_ed25519"


@pytest.mark.parametrize(
    ("accelerator", "hangs", "starts", "ends_well"),
    [
        ("tcg", 0, 1, True),
        ("tcg", 1, 2, True),
        ("tcg", 2, 2, False),
        ("kvm", 0, 1, True),
        ("kvm", 1, 2, True),
        ("kvm", 2, 2, False),
    ],
)
def test_a_boot_that_hangs_is_begun_again(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    hangs: int,
    starts: int,
    ends_well: bool,
) -> None:
    """QEMU and its boots are simulated."""
    (machine.folder / "image").mkdir()
    (machine.folder / "image/host_id_ed25519.pub").write_text("ssh-ed25519 AAAA\n")
    (machine.folder / "root.qcow2").touch()
    (machine.folder / "models.img").touch()
    done: list[str] = []

    def wait(_: Machine, seconds: int) -> None:
        if done.count("start") <= hangs:
            raise SandboxError("one did not start in 300 s")

    monkeypatch.setattr(virtual, "need", lambda *programs: None)
    monkeypatch.setattr(virtual, "accelerator", lambda: accelerator)
    monkeypatch.setattr(virtual, "run", lambda command: done.append("start"))
    monkeypatch.setattr(virtual, "stop", lambda machine: done.append("stop"))
    monkeypatch.setattr(virtual, "wait", wait)
    said: list[str] = []
    if ends_well:
        virtual.up(machine, said.append)
    else:
        with pytest.raises(SandboxError, match="did not start in 300 s"):
            virtual.up(machine, said.append)
    assert done == ["start", *["stop", "start"] * (starts - 1)]
    how = ", emulated" if accelerator == "kvm" else ""
    assert said.count(f"one did not start in 300 s; it is switched off and on again{how}") == starts - 1
    # What has hung with KVM is not begun with it a second time.
    assert (machine.folder / "emulated").exists() == (accelerator == "kvm" and hangs > 0)
