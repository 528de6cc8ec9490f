"""Machines that were added: written, read by pyinfra's own means, taken out; and whether one is fit for a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehost import nodes, probe
from moehost.nodes import HostKey, NodesError

BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIDwJlvYVv1KwHgEz9763JE1cqBPbd1slRsTkX84CnZhy"
KEY = HostKey("[192.0.2.10]:2222", "ssh-ed25519", BLOB)
DATA = {"ssh_hostname": "192.0.2.10", "_sudo": True}
DF = """Filesystem     1024-blocks      Used Available Capacity Mounted on
/dev/sda2        103081248   8000000  95081248       8% /
/dev/sdb1       3844510720         4 3649144884       1% /srv/models
"""
GOOD = {
    "lscpu": '{"lscpu": [{"field": "Model name:", "data": "AMD EPYC 9175F"}, {"field": "Socket(s):", "data": "1"}, '
    '{"field": "Core(s) per socket:", "data": "16"}, {"field": "CPU(s):", "data": "32"}]}',
    "meminfo": "MemTotal:       792723456 kB\n",
    "nvidia_smi": "",
    "has_memory": "0\n",
    "l3_ids": "0\n",
    "os_release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "arch": "x86_64\n",
    "uid": "1000\n",
    "sudo": "0\n",
    "python3": "Python 3.13.5\n",
    "cards": "/sys/bus/pci/devices/0000:01:00.0/vendor\n",
    "disks": DF,
}


def test_added_read_removed(tmp_path: Path) -> None:
    path = nodes.add(tmp_path, "epyc", DATA, KEY)
    assert path == tmp_path / "nodes/epyc.json"
    assert nodes.hosts(str(tmp_path / "hosts.py")) == [("epyc", DATA)]
    assert nodes.known(tmp_path, KEY.where) == [KEY]
    nodes.remove(tmp_path, "epyc")
    assert nodes.hosts(str(tmp_path / "hosts.py")) == []
    assert nodes.known_hosts(tmp_path).read_text() == ""


def test_keys_of_others_stay(tmp_path: Path) -> None:
    mine = f"192.0.2.11 ssh-ed25519 {BLOB} by hand\n"
    nodes.known_hosts(tmp_path).write_text(mine)
    nodes.add(tmp_path, "epyc", DATA, KEY)
    nodes.remove(tmp_path, "epyc")
    assert nodes.known_hosts(tmp_path).read_text() == mine


def test_a_killed_add_is_finished_by_the_next(tmp_path: Path) -> None:
    nodes.known_hosts(tmp_path).write_text(KEY.line("epyc"))
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes/epyc.json.new").write_text("{")
    nodes.add(tmp_path, "epyc", DATA, KEY)
    assert nodes.hosts(str(tmp_path / "hosts.py")) == [("epyc", DATA)]
    assert nodes.known_hosts(tmp_path).read_text() == KEY.line("epyc")


def test_one_that_was_installed_anew_gets_its_key_and_keeps_its_settings(tmp_path: Path) -> None:
    data = DATA | {"ssh_port": 2222}
    nodes.add(tmp_path, "epyc", data, KEY)
    nodes.known_hosts(tmp_path).write_text("")
    nodes.add(tmp_path, "epyc", {}, KEY)
    assert nodes.hosts(str(tmp_path / "hosts.py")) == [("epyc", data)]
    assert nodes.known(tmp_path, KEY.where) == [KEY]


def test_refusals(tmp_path: Path) -> None:
    nodes.add(tmp_path, "epyc", DATA, KEY)
    with pytest.raises(NodesError, match="is there; edit it"):
        nodes.add(tmp_path, "epyc", {}, KEY)
    with pytest.raises(NodesError, match="yours to edit"):
        nodes.remove(tmp_path, "other")
    (tmp_path / "nodes/epyc.json").write_text("{,}")
    with pytest.raises(NodesError, match="is no JSON"):
        nodes.hosts(str(tmp_path / "hosts.py"))


def test_the_best_key_comes_first() -> None:
    text = f"# comment\nhost ssh-rsa {BLOB}\nhost ssh-ed25519 {BLOB}\nhost ssh-dss {BLOB}\n"
    assert [key.type for key in nodes.host_keys(text)] == ["ssh-ed25519", "ssh-rsa"]


def test_a_fit_machine() -> None:
    found = list(probe.examine(GOOD, "admin", "/srv/models"))
    assert {each.level for each in found} == {"ok"}
    says = {each.area: each.says for each in found}
    assert says["disk"] == "3480 GiB free for /srv/models, on /srv/models"
    assert says["cards"] == "1 of NVIDIA; no driver yet, the deploy installs it"


@pytest.mark.parametrize(
    ("change", "area", "level", "says"),
    [
        ({"os_release": "ID=fedora\nPRETTY_NAME=Fedora\n"}, "system", "error", "Fedora is not supported"),
        ({"sudo": ""}, "rights", "error", "admin has no sudo without a password"),
        ({"python3": ""}, "python3", "error", "is not there"),
        ({"arch": "aarch64\n"}, "processor", "error", "aarch64 is not x86_64"),
        ({"lscpu": ""}, "hardware", "error", "lscpu: cannot be read"),
        ({"disks": DF.splitlines()[0]}, "disk", "error", "no file system for /srv/models"),
        ({"disks": "\n".join(DF.splitlines()[:2])}, "disk", "warning", "91 GiB free for /srv/models, on /"),
    ],
)
def test_what_is_lacking(change: dict[str, str], area: str, level: str, says: str) -> None:
    (found,) = [each for each in probe.examine(GOOD | change, "admin", "/srv/models") if each.level != "ok"]
    assert (found.area, found.level) == (area, level)
    assert found.says.startswith(says) and found.fix
