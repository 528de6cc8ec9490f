"""The program that a container waits for: is the CDI specification of the driver that is loaded?"""

import subprocess

import pytest

from roles.operations import render
from tests.fixtures.cdi_specification import as_json, as_yaml

SEE = "; nvidia-cdi-refresh did not mend it, see: journalctl -u nvidia-cdi-refresh"


class Machine:
    """A machine whose module is loaded; `refreshed` is what its refresh unit writes, None if it fails."""

    def __init__(self, folder):
        self.folder, self.run, self.etc = folder, folder / "run", folder / "etc"
        for each in ("bin", "run", "etc", "sys/module/nvidia"):
            (folder / each).mkdir(parents=True)
        (folder / "sys/module/nvidia/version").write_text("580.95.05\n")
        self.refreshed = None

    def check(self):
        """Exit code, what it says, and how often the specification was refreshed."""
        asked = self.folder / "asked"
        write = "exit 1"
        if self.refreshed is not None:
            (self.folder / "fresh").write_text(self.refreshed)
            write = f"cp {self.folder}/fresh {self.run}/nvidia.yaml"
        systemctl = self.folder / "bin/systemctl"
        systemctl.write_text(f'#!/bin/sh\necho noise; echo "$*" >>{asked}\n{write}\n')
        systemctl.chmod(0o755)
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "SYS": f"{self.folder}/sys",
            "CDI_FOLDERS": f"{self.run} {self.etc}",
        }
        command = ["sh", "-c", render("nvidia_container_toolkit/cdi-fresh.j2")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout == ""
        times = asked.read_text().splitlines() if asked.exists() else []
        assert set(times) <= {"start nvidia-cdi-refresh.service"}
        return done.returncode, done.stderr.strip().replace(str(self.folder), ""), len(times)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(("name", "write"), [("nvidia.yaml", as_yaml), ("nvidia.json", as_json)])
def test_a_fresh_specification(machine, name, write):
    (machine.run / name).write_text(write())
    assert machine.check() == (0, "", 0)


def test_one_in_etc_counts_where_there_is_no_other(machine):
    (machine.etc / "nvidia.yaml").write_text(as_yaml())
    assert machine.check() == (0, "", 0)


def test_a_stale_one_in_etc_is_hidden_by_a_fresh_one(machine):
    (machine.etc / "nvidia.yaml").write_text(as_yaml(driver="570.133.07"))
    (machine.run / "nvidia.yaml").write_text(as_yaml())
    assert machine.check() == (0, "", 0)


def test_a_stale_one_is_refreshed_once(machine):
    (machine.run / "nvidia.yaml").write_text(as_yaml(driver="570.133.07"))
    machine.refreshed = as_yaml()
    assert machine.check() == (0, "", 1)


def test_one_that_is_absent_is_written(machine):
    machine.refreshed = as_yaml()
    assert machine.check() == (0, "", 1)


def test_a_stale_one_that_stays_so(machine):
    (machine.run / "nvidia.yaml").write_text(as_yaml(driver="570.133.07"))
    why = "/run/nvidia.yaml is of driver 570.133.07, and the module that is loaded is 580.95.05"
    assert machine.check() == (1, f"containers can't have the cards: {why}{SEE}", 1)
    machine.refreshed = as_yaml(driver="570.133.07")
    assert machine.check()[:2] == (1, f"containers can't have the cards: {why}{SEE}")


def test_a_stale_one_beside_a_fresh_one_in_one_folder(machine):
    (machine.run / "nvidia.yaml").write_text(as_yaml())
    (machine.run / "cards.json").write_text(as_json(driver="570.133.07"))
    code, says, _ = machine.check()
    assert code == 1
    assert "/run/cards.json is of driver 570.133.07" in says


@pytest.mark.parametrize("kind", ["home.arpa/nic", "management.nvidia.com/gpu", "nvidia.com/gpus"])
def test_other_kinds_are_none_of_the_cards(machine, kind):
    (machine.run / "other.yaml").write_text(as_yaml(kind=kind))
    (machine.run / "other.json").write_text(as_json(kind=kind))
    code, says, _ = machine.check()
    assert (code, says) == (
        1,
        f"containers can't have the cards: there is no CDI specification of nvidia.com/gpu in /run /etc{SEE}",
    )


@pytest.mark.parametrize("text", ["", "---\nkind: nvidia.com/gpu\n"])
def test_one_that_was_cut_off(machine, text):
    (machine.run / "nvidia.yaml").write_text(text)
    machine.refreshed = as_yaml()
    assert machine.check() == (0, "", 1)


def test_a_module_that_is_not_loaded(machine):
    (machine.run / "nvidia.yaml").write_text(as_yaml())
    (machine.folder / "sys/module/nvidia/version").unlink()
    why = "the driver's module is not loaded; run: modprobe nvidia"
    assert machine.check() == (1, f"containers can't have the cards: {why}{SEE}", 1)
