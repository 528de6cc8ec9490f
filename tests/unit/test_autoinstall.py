"""What an installer reads: a whole text of each kind, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from moehost import autoinstall
from moehost.cli import main
from moehost.settings import SettingsError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDwJlvYVv1KwHgEz9763JE1cqBPbd1slRsTkX84CnZhy owner"
GOLDEN = Path(__file__).parents[1] / "fixtures/autoinstall"
WISHES = {
    "one-disk": {},
    "two-disks": {"models_disk": "/dev/disk/by-id/nvme-B"},
    "kept": {"models_disk": "/dev/disk/by-id/nvme-B", "keep_models": True},
}


def installation(os: str, **wishes: object) -> autoinstall.Installation:
    return autoinstall.read(
        **{"os": os, "hostname": "epyc", "disk": "/dev/disk/by-id/nvme-A", "ssh_key": KEY, **wishes}
    )


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("system", ["ubuntu", "debian"])
def test_the_texts_are_those_that_were_read_by_a_person(system: str, wish: str) -> None:
    for name, text in autoinstall.render(installation(system, **WISHES[wish])).items():
        path = GOLDEN / f"{wish}.{name}"
        if os.environ.get("GOLDEN") == "write":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text()


@pytest.mark.parametrize("wish", WISHES)
def test_the_installers_schema_takes_it(wish: str) -> None:
    schema = os.environ.get("AUTOINSTALL_SCHEMA")
    if not schema:
        pytest.skip("AUTOINSTALL_SCHEMA names no autoinstall-schema.json of subiquity's")
    data = autoinstall.user_data(installation("ubuntu", **WISHES[wish]))
    jsonschema.validate(data["autoinstall"], json.loads(Path(schema).read_text()))


@pytest.mark.parametrize("wish", WISHES)
def test_debconf_takes_the_preseed(wish: str, tmp_path: Path) -> None:
    if not shutil.which("debconf-set-selections"):
        pytest.skip("debconf-set-selections is not on this computer")
    path = tmp_path / "preseed.cfg"
    path.write_text(autoinstall.preseed(installation("debian", **WISHES[wish])))
    run = subprocess.run(["debconf-set-selections", "--checkonly", str(path)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_kept_disk_is_in_no_action_that_writes() -> None:
    wish = installation("ubuntu", **WISHES["kept"])
    install = autoinstall.user_data(wish)["autoinstall"]
    assert "nvme-B" not in json.dumps(install["storage"])
    assert install["early-commands"][0] == autoinstall.require_models(wish)
    debian = autoinstall.preseed(installation("debian", **WISHES["kept"]))
    assert "mkfs" not in debian and "sgdisk" not in debian


def test_commands_are_shell() -> None:
    for wish in WISHES.values():
        install = autoinstall.user_data(installation("ubuntu", **wish))["autoinstall"]
        for command in [*install["early-commands"], *install.get("late-commands", [])]:
            assert subprocess.run(["sh", "-n", "-c", command], capture_output=True).returncode == 0, command


@pytest.mark.parametrize(
    ("on", "wanted", "fits"),
    [
        ("sdb/sdb1", "sdb", True),
        ("sdb", "sdb", True),
        ("sdbb/sdbb1", "sdb", False),
        ("sda/sda1", "sdb", False),
        (None, "sdb", False),
        ("sda/sda3", "sda", False),
    ],
)
def test_kept_models_must_lie_on_their_own_disk(tmp_path: Path, on: str | None, wanted: str, fits: bool) -> None:
    command = autoinstall.require_models(
        installation("ubuntu", disk="/dev/sda", models_disk="/dev/sdb", keep_models=True)
    )
    for folder in ("dev/disk/by-label", "class/block", f"devices/block/{on}"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    if on:
        name = Path(on).name
        (tmp_path / f"dev/{name}").touch()
        (tmp_path / "dev/disk/by-label/models").symlink_to(tmp_path / f"dev/{name}")
        (tmp_path / f"class/block/{name}").symlink_to(tmp_path / f"devices/block/{on}")
    command = command.replace("/dev/sdb", f"/dev/{wanted}").replace("/dev/", f"{tmp_path}/dev/")
    command = command.replace("/sys/", f"{tmp_path}/").replace("test -b", "test -e")
    assert (subprocess.run(["sh", "-c", command]).returncode == 0) == fits


def test_links_become_the_kernels_names(tmp_path: Path) -> None:
    link, disk, config = tmp_path / "by-id", tmp_path / "sda", tmp_path / "autoinstall.yaml"
    disk.touch()
    link.symlink_to(disk)
    config.write_text(f"    path: {link}\n    path: {link}-other\n")
    wish = installation("ubuntu").model_copy(update={"disk": str(link)})
    (command,) = autoinstall.user_data(wish)["autoinstall"]["early-commands"]
    subprocess.run(["sh", "-c", command.replace("/autoinstall.yaml", str(config))], check=True)
    assert config.read_text() == f"    path: {disk}\n    path: {link}-other\n"


@pytest.mark.parametrize("system", ["ubuntu", "debian"])
def test_nobody_has_a_password(system: str) -> None:
    texts = autoinstall.render(installation(system))
    if system == "ubuntu":
        (person,) = yaml.safe_load(texts["user-data"])["autoinstall"]["user-data"]["users"]
        assert person["lock_passwd"] and "passwd" not in person
    else:
        assert "user-password-crypted password !\n" in texts["preseed.cfg"]


@pytest.mark.parametrize(
    ("wishes", "line"),
    [
        ({"keep_models": True}, "needs --models-disk"),
        ({"models_disk": "/dev/disk/by-id/nvme-A"}, "is the system's disk"),
        ({"ssh_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "give the .pub file"),
        ({"ssh_key": f"{KEY}'; reboot"}, "give the .pub file"),
        ({"disk": "/dev/sda; reboot"}, "write the path of a disk"),
        ({"user": "root"}, "other than root"),
        ({"hostname": "Epyc"}, "lower-case"),
    ],
)
def test_refusals(wishes: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as error:
        installation("ubuntu", **wishes)
    assert len(error.value.lines) == 1 and line in error.value.lines[0]


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text(f"{KEY}\n")
    arguments = [
        "--out",
        str(tmp_path / "seed"),
        "--ssh-key",
        str(key),
        "--disk",
        "/dev/sda",
        "--address",
        "192.0.2.10",
    ]
    run = CliRunner().invoke(main, ["autoinstall", "epyc.home", *arguments, "--inventory", str(tmp_path / "none")])
    assert run.exit_code == 0, run.output
    assert "moehost node add epyc.home --address 192.0.2.10 --user admin" in run.stdout
    assert sorted(path.name for path in (tmp_path / "seed").iterdir()) == ["meta-data", "user-data"]
