"""The inventory: `pyinfra inventory ...` reads the folder, and `moehost check-inventory` says what is wrong in it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from moehost import cli

ROOT = Path(__file__).parents[2]
MODEL = {"name": "m", "source": "file:///srv/m.gguf"}


def run(program, *arguments, folder=ROOT, **environment):
    """A program of this Python environment, run in a folder."""
    path = Path(sys.executable).with_name(program)
    environment = {**os.environ, **environment}
    return subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def hosts(inventory, folder=ROOT, **environment):
    """The hosts of an inventory as pyinfra has them, by name."""
    done = run("pyinfra", inventory, "debug-inventory", "--json", folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    return {host["name"]: host for host in json.loads(done.stdout)}


@pytest.mark.parametrize("spelling", ["inventory", "inventory/", "./inventory", "inventory/hosts.py"])
def test_a_folder_is_an_inventory(spelling):
    found = hosts(spelling)
    assert found["@podman/moehost-sandbox"]["data"]["services"][0]["name"] == "tiny"
    assert "sandbox" in found["@podman/moehost-sandbox"]["groups"]


def test_group_data_beside_the_folders_hosts_is_found(tmp_path):
    shutil.copy(ROOT / "config.py", tmp_path)
    (tmp_path / "roles").symlink_to(ROOT / "roles")
    (tmp_path / "inventory/group_data").mkdir(parents=True)
    (tmp_path / "inventory/hosts.py").write_text("gpu_nodes = ['epyc.home.arpa']\n")
    (tmp_path / "inventory/group_data/gpu_nodes.py").write_text("models_dir = '/data/models'\n")
    assert hosts("inventory", folder=tmp_path)["epyc.home.arpa"]["data"]["models_dir"] == "/data/models"


FLEET = """\
fast = ["epyc1.home.arpa", ("epyc2.home.arpa", {"models_dir": "/own"})]
spare = ["old.home.arpa"]
gpu_nodes = fast + spare
"""
GROUP_DATA = {
    "all": "models_dir = '/of/all'\ngpu = 'off'\nallow_reboot = True\n",
    "fast": "models_dir = '/of/fast'\ngpu = 'require'\n",
    "gpu_nodes": "gpu = 'auto'\n",
}


def test_settings_of_groups_merge_as_the_page_on_fleets_says(tmp_path):
    (tmp_path / "group_data").mkdir()
    (tmp_path / "fleet.py").write_text(FLEET)
    for name, text in GROUP_DATA.items():
        (tmp_path / f"group_data/{name}.py").write_text(text)
    code, data, _ = check(tmp_path / "fleet.py", "--json")
    assert code == 0
    found = {name: (each["models_dir"], each["gpu"], each["allow_reboot"]) for name, each in json.loads(data).items()}
    # Order of the file; the host's own first, then a later group before an earlier one, then all.
    assert list(found.items()) == [
        ("epyc1.home.arpa", ("/of/fast", "auto", True)),
        ("epyc2.home.arpa", ("/own", "auto", True)),
        ("old.home.arpa", ("/of/all", "auto", True)),
    ]
    # A group of the file's own name comes last, and beats them.
    (tmp_path / "group_data/fleet.py").write_text("gpu = 'require'\nmodels_dir = '/of/the/file'\n")
    found = json.loads(check(tmp_path / "fleet.py", "--json")[1])
    assert [(each["models_dir"], each["gpu"]) for each in found.values()] == [
        ("/of/the/file", "require"),
        ("/own", "require"),
        ("/of/the/file", "require"),
    ]
    # Mistakes in a group's are named for each host that has them.
    (tmp_path / "group_data/fast.py").write_text("model_dir = '/srv'\n")
    code, _, talk = check(tmp_path / "fleet.py")
    assert code == 2
    assert talk.splitlines() == [
        f"moehost: {host}.home.arpa: model_dir: unknown setting; did you mean 'models_dir'?"
        for host in ("epyc1", "epyc2")
    ]


def test_the_example_of_the_page_on_fleets_is_right(tmp_path):
    hosts_py, of_all, of_fast = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/fleet.md").read_text(), re.S | re.M
    )
    (tmp_path / "group_data").mkdir()
    for name, text in (("hosts", hosts_py), ("group_data/all", of_all), ("group_data/fast", of_fast)):
        (tmp_path / f"{name}.py").write_text(text.replace("OWNER/REPO/PATH@COMMIT", f"o/r/m.gguf@{'0' * 40}"))
    code, data, talk = check(tmp_path, "--json")
    assert (code, talk) == (0, "")
    found = json.loads(data)
    assert list(found) == ["epyc3", "epyc1", "epyc2"]
    assert [each["tuning"]["huge_pages"] == "static" for each in found.values()] == [False, True, True]
    assert [each["allow_reboot"] for each in found.values()] == [False, False, True]
    assert [each["services"][0]["name"] for each in found.values()] == ["qwen"] * 3


def test_instances_of_a_molecule_scenario_have_its_settings(tmp_path):
    instances = tmp_path / "inventory.yml"
    both = "{hosts: {one: {}, two: {}}}"
    instances.write_text(
        f"all: {both}\nungrouped: {both}\nnodes: {{hosts: {{one: {{}}}}}}\nrest: {{hosts: {{two: {{}}}}}}\n"
    )
    found = hosts(
        "inventory/molecule.py",
        MOLECULE_INVENTORY_FILE=str(instances),
        MOLECULE_EPHEMERAL_DIRECTORY=str(tmp_path),
        MOLECULE_SCENARIO_DIRECTORY=str(ROOT / "molecule/default"),
    )
    assert set(found) == {"@podman/one", "@podman/two"}
    assert "nodes" in found["@podman/one"]["groups"]
    assert "nodes" not in found["@podman/two"]["groups"]
    assert found["@podman/two"]["data"]["services"]


def check(*arguments):
    """Exit code, data and talk of `moehost check-inventory`."""
    done = CliRunner().invoke(cli.main, ["check-inventory", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def inventory(tmp_path):
    """Writes an inventory and says where it is."""

    def write(text):
        path = tmp_path / "hosts.py"
        path.write_text(text)
        return path

    return write


def test_a_good_inventory_is_listed():
    assert check(ROOT / "inventory") == (0, "@podman/moehost-sandbox: tiny\n", "")


def test_the_settings_of_all_hosts_with_their_defaults(inventory):
    services = [{"name": "tiny", "model": MODEL}]
    path = inventory(f"nodes = [('a.home.arpa', {{'services': {services}, 'ssh_user': 'root'}}), 'b.home.arpa']\n")
    code, data, _ = check(path, "--json")
    settings = json.loads(data)
    assert (code, list(settings)) == (0, ["a.home.arpa", "b.home.arpa"])
    assert settings["a.home.arpa"]["services"][0]["port"] == 8080
    assert settings["b.home.arpa"]["services"] == []


def test_every_mistake_of_every_host_is_one_line(inventory):
    path = inventory(
        "nodes = [\n"
        "    ('a.home.arpa', {'servces': [], 'models_dir': 'srv'}),\n"
        "    ('b.home.arpa', {}),\n"
        f"    ('c.home.arpa', {{'services': [{{'name': 'tiny', 'model': {MODEL}, 'kv_type': 'q8'}}]}}),\n"
        "]\n"
    )
    code, data, talk = check(path)
    assert (code, data) == (2, "")
    assert [line.split(": ")[1:4] for line in talk.splitlines()] == [
        ["a.home.arpa", "models_dir", "'srv'"],
        ["a.home.arpa", "servces", "unknown setting; did you mean 'services'?"],
        [
            "c.home.arpa",
            "services[0].kv_type",
            "'q8' is not one of 'f16', 'bf16', 'q8_0', 'q5_1', 'q5_0', 'q4_1' or 'q4_0'; did you mean 'q8_0'?",
        ],
    ]


@pytest.mark.parametrize("path", ["nowhere.py", "nowhere/", "."])
def test_what_is_not_there_is_said(path, tmp_path):
    there = tmp_path / path
    code, data, talk = check(there)
    named = there / "hosts.py" if there.is_dir() else there
    assert (code, data, talk) == (2, "", f"moehost: {named}: there is no such file\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no host"),
        ("nodes = [(]\n", "pyinfra can't read it: SyntaxError: closing parenthesis ']' does not match opening"),
        ("import nowhere\n", "pyinfra can't read it: ModuleNotFoundError: No module named 'nowhere'"),
    ],
    ids=["empty", "syntax", "import"],
)
def test_what_is_no_inventory_is_refused_in_one_line(inventory, monkeypatch, text, reason):
    path = inventory(text)
    # pyinfra leaves a log of what it did not expect in the working directory.
    monkeypatch.chdir(path.parent)
    code, data, talk = check(path)
    assert (code, data) == (2, "")
    assert talk.startswith(f"moehost: {path}: {reason}")
    assert len(talk.splitlines()) == 1


def test_the_console_script_shows_no_traceback(inventory):
    done = run("moehost", "check-inventory", inventory("nodes = [('a.home.arpa', {'zzz': 1})]\n"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("moehost: a.home.arpa: zzz: unknown setting; known: services, ")
    assert len(done.stderr.splitlines()) == 1


def test_a_container_that_was_stopped_is_started_and_stays(tmp_path: Path) -> None:
    """pyinfra alone would remove it in the end: who deploys to a stopped sandbox would lose what is in it."""
    told, podman = tmp_path / "told", tmp_path / "podman"
    state = '[{"State": {"Running": false}}]'
    podman.write_text(f'#!/bin/sh\necho "$@" >>{told}\ncase "$*" in *inspect*) echo \'{state}\' ;; esac\n')
    podman.chmod(0o755)
    command = [Path(sys.executable).with_name("pyinfra"), "@podman/stopped", "exec", "--", "true"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    words = [line.split()[:2] for line in told.read_text().splitlines()]
    assert ["container", "start"] in words
    assert not [each for each in words if each[0] in ("rm", "commit")]
