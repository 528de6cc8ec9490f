"""Inventories of Ansible's, read by Ansible itself: which hosts are nodes, their settings, how each is reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from moehost import ansible_inventory, settings
from moehost.ansible_inventory import AnsibleInventoryError
from moehost.cli import main
from tests.unit.test_inventory import ROOT, hosts

MODEL = {"name": "m", "source": "file:///srv/m.gguf"}
SERVICES = [{"name": "qwen", "model": MODEL}]
ESTATE = """\
[gpu_nodes]
epyc ansible_host=192.0.2.10 ansible_port=2222

[web]
www[1:3].home.arpa

[home:children]
gpu_nodes
web

[home:vars]
ansible_user=admin
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ansible has no configuration but what a test gives it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ANSIBLE_CONFIG", "ANSIBLE_VAULT_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)


def written(folder: Path, text: str = ESTATE, name: str = "hosts.ini", **variables: dict[str, Any]) -> str:
    """An inventory with files of variables beside it; `group_NAME` and `host_NAME` say whose they are."""
    (folder / name).write_text(text)
    for owner, data in variables.items():
        kind, _, whose = owner.partition("_")
        path = folder / f"{kind}_vars" / f"{whose}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(data))
    return str(folder / name)


def one(folder: Path, **variables: Any) -> tuple[str, dict[str, Any]]:
    """The only node of an inventory whose host has these variables."""
    path = written(folder, "epyc\n", host_epyc={"moehost_gpu": "off", **variables})
    (found,) = ansible_inventory.hosts(path).items()
    return found


def test_groups_children_variables_and_what_stands_between_braces(tmp_path: Path) -> None:
    """The hosts of the estate that are no nodes stay out: a deploy must not touch them."""
    path = written(
        tmp_path,
        group_all={"commit": "a" * 40, "broken": "{{ nowhere }}"},
        group_gpu_nodes={
            "moehost_engine": {"commit": "{{ commit }}"},
            "moehost_services": [
                {"name": "qwen", "model": {"name": "m", "source": "file:///{{ inventory_hostname }}.gguf"}}
            ],
        },
        host_epyc={"moehost_models_dir": "/data/models", "ntp_servers": ["a"], "services": ["mine"]},
    )
    groups = ansible_inventory.groups(path)
    assert {name: [host for host, _ in members] for name, members in groups.items()} == {
        name: ["epyc"] for name in ("all", "gpu_nodes", "home")
    }
    data = dict(groups["gpu_nodes"])["epyc"]
    assert data == {
        "engine": {"commit": "a" * 40},
        "services": [{"name": "qwen", "model": {"name": "m", "source": "file:///epyc.gguf"}}],
        "models_dir": "/data/models",
        **{"ssh_hostname": "192.0.2.10", "ssh_port": 2222, "ssh_user": "admin", "_sudo": True},
    }
    assert settings.read(data).services[0].model.source == "file:///epyc.gguf"


def test_yaml_and_a_folder_of_inventories(tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {"gpu_nodes": {"hosts": {"a": {"moehost_services": SERVICES}, "b": {"moehost_gpu": "off"}}}}
    )
    folder = tmp_path / "inventory"
    folder.mkdir()
    path = written(folder, text, "hosts.yml", host_b={"moehost_services": SERVICES})
    for each in (path, str(folder)):
        found = ansible_inventory.hosts(each)
        assert found == {"a": {"services": SERVICES}, "b": {"gpu": "off", "services": SERVICES}}


FILES = ("ssh_key", "ssh_known_hosts_file")
GOOD: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"ansible_user": "root"}, "HOST", {"ssh_user": "root"}),
    ({"ansible_user": "root", "ansible_become": "yes"}, "HOST", {"ssh_user": "root", "_sudo": True}),
    (
        {"ansible_user": "me", "ansible_become": False, "ansible_become_password": "p", "ansible_password": "q"},
        "HOST",
        {"ssh_user": "me", "_sudo": True, "_sudo_password": "p", "ssh_password": "q"},
    ),
    (
        {"ansible_ssh_host": "h", "ansible_ssh_port": "23", "ansible_ssh_private_key_file": "~/key"},
        "HOST",
        {"ssh_hostname": "h", "ssh_port": 23, "ssh_key": "HOME/key"},
    ),
    ({"ansible_connection": "local", "ansible_become": True}, "@local", {"_sudo": True}),
    ({"ansible_connection": "containers.podman.podman", "ansible_host": "box"}, "@podman/box", {}),
    ({"ansible_connection": "docker"}, "@docker/HOST", {}),
    ({"ansible_host_key_checking": False}, "HOST", {"ssh_strict_host_key_checking": "no"}),
    (
        {"ansible_ssh_common_args": "-C -o ControlMaster=auto -oStrictHostKeyChecking=yes -A -l me",
         "ansible_ssh_extra_args": "-o 'UserKnownHostsFile ~/known' -i /key"},
        "HOST",
        {"ssh_strict_host_key_checking": "yes", "ssh_forward_agent": True, "ssh_user": "me", "_sudo": True,
         "ssh_known_hosts_file": "HOME/known", "ssh_key": "/key"},
    ),
]  # fmt: skip
BAD: list[tuple[dict[str, Any], str]] = [
    ({"ansible_connection": "winrm"}, "ansible_connection: 'winrm' is no way that is known here; write "),
    ({"ansible_port": "many"}, "ansible_port: 'many' is no port"),
    ({"ansible_become": True, "ansible_become_user": "llm"}, "ansible_become_user: 'llm': here it is root"),
    ({"ansible_become_method": "doas"}, "ansible_become_method: 'doas': here it is sudo"),
    ({"ansible_ssh_common_args": "-o Tunnel=yes"}, "ansible_ssh_common_args: Tunnel: pyinfra does not know"),
    ({"ansible_ssh_common_args": "-w 1"}, "ansible_ssh_common_args: '-w' is not understood"),
    ({"ansible_ssh_common_args": "-o 'User=me"}, "No closing quotation"),
]


@pytest.fixture(scope="module")
def all_cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What Ansible says of an inventory that has all those hosts: it takes a second to ask it."""
    folder = tmp_path_factory.mktemp("cases")
    every = {f"good{n}": each[0] for n, each in enumerate(GOOD)} | {f"bad{n}": each[0] for n, each in enumerate(BAD)}
    variables = {f"host_{name}": {"moehost_gpu": "off", **each} for name, each in every.items()}
    return ansible_inventory._asked(Path(written(folder, "\n".join(every) + "\n", **variables)))


def only(name: str, all_cases: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The nodes of an inventory that has one of those hosts."""
    answer = all_cases | {"hosts": {name: all_cases["hosts"][name]}}
    monkeypatch.setattr(ansible_inventory, "_asked", lambda _: answer)
    return ansible_inventory.hosts("hosts.ini")


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_how_a_node_is_reached(number: int, all_cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, host, wanted = GOOD[number]
    found = only(f"good{number}", all_cases, monkeypatch)
    wanted = {key: str(each).replace("HOME", str(tmp_path)) if key in FILES else each for key, each in wanted.items()}
    assert found == {host.replace("HOST", f"good{number}"): {"gpu": "off", **wanted}}


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_mistake_is_one_line_with_host_and_variable(
    number: int, all_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnsibleInventoryError) as caught:
        only(f"bad{number}", all_cases, monkeypatch)
    assert str(caught.value).startswith(f"hosts.ini: bad{number}: {BAD[number][1]}")
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_nowhere_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "epyc\n", host_epyc={"moehost_models_dir": "{{ nowhere }}"})
    with pytest.raises(AnsibleInventoryError, match="epyc: moehost_models_dir: 'nowhere' is undefined"):
        ansible_inventory.hosts(path)


def test_the_way_through_another_host(tmp_path: Path) -> None:
    """pyinfra knows ProxyJump from a file in OpenSSH's form only, and reads that file with its own eyes."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host bastion\n  Port 2200\nHost *\n  User nobody\n")
    jump = "-o ProxyJump=me@bastion,inner -o ConnectTimeout=5"
    _, data = one(tmp_path, ansible_host="192.0.2.10", ansible_user="root", ansible_ssh_common_args=jump)
    code = """if True:
        import json, sys
        from pyinfra.connectors.sshuserclient.client import get_ssh_config
        found = get_ssh_config(sys.argv[1])
        print(json.dumps([dict(found.lookup(each)) for each in ("192.0.2.10", "bastion")]))"""
    command = [sys.executable, "-c", code, data.pop("ssh_config_file")]
    # The file is gone with its process, which is this one.
    node, bastion = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (node["proxyjump"], node["connecttimeout"]) == ("me@bastion,inner", "5")
    assert (bastion["port"], "proxyjump" in bastion) == ("2200", False)
    assert data == {"gpu": "off", "ssh_hostname": "192.0.2.10", "ssh_user": "root"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[a\nb\n", "Ansible can't read it: "),
        ("web\n", "no host has a variable that begins with moehost_; give your nodes moehost_services, see "),
        (
            "a moehost_gpu=off ansible_connection=local\nb moehost_gpu=off ansible_connection=local\n",
            "b: is @local, as",
        ),
    ],
    ids=["torn", "no node", "twice the same"],
)
def test_an_inventory_that_is_no_good_is_one_line_of_every_command(tmp_path: Path, text: str, line: str) -> None:
    path = written(tmp_path, text)
    done = CliRunner().invoke(main, ["check-inventory", f"ansible:{path}"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"moehost: {path}: {line}")
    assert done.stderr.count("\n") == 1


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", f"ansible:{tmp_path}/nowhere"])
    assert (done.exit_code, done.stderr) == (2, f"moehost: {tmp_path}/nowhere: there is no such file\n")


def vault(folder: Path, *arguments: str, text: str | None = None) -> str:
    program = Path(sys.executable).with_name("ansible-vault")
    words = [program, *arguments, "--vault-password-file", folder / "password"]
    return subprocess.run(words, check=True, capture_output=True, text=True, input=text).stdout


@pytest.mark.parametrize("whole", [True, False], ids=["file", "value"])
def test_a_vault_is_read_with_its_password_file_and_named_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    path = written(tmp_path, "epyc\n", host_epyc={"moehost_gpu": "off", "ansible_become": True})
    (tmp_path / "password").write_text("long and secret\n")
    secret = tmp_path / "group_vars" / "all.yml"
    secret.parent.mkdir()
    if whole:
        secret.write_text("ansible_become_password: hunter2\n")
        vault(tmp_path, "encrypt", str(secret))
    else:
        secret.write_text(f"ansible_become_password: {vault(tmp_path, 'encrypt_string', 'hunter2')}")
    with pytest.raises(AnsibleInventoryError, match="ANSIBLE_VAULT_PASSWORD_FILE names the file with"):
        ansible_inventory.hosts(path)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    assert ansible_inventory.hosts(path)["epyc"]["_sudo_password"] == "hunter2"
    # The password of a vault may as well stand in the configuration that lies above the inventory.
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE")
    (tmp_path / "ansible.cfg").write_text("[defaults]\nvault_password_file = password\nremote_user = me\n")
    assert ansible_inventory.hosts(path)["epyc"] == {
        "gpu": "off", "ssh_user": "me", "_sudo": True, "_sudo_password": "hunter2"
    }  # fmt: skip


def test_a_configuration_that_anybody_could_have_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults]\nremote_user = mallory\n")
    assert one(tmp_path)[1] == {"gpu": "off", "ssh_user": "mallory", "_sudo": True}
    tmp_path.chmod(0o777)
    assert one(tmp_path)[1] == {"gpu": "off"}


def test_without_ansible_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "epyc moehost_gpu=off\n")
    (tmp_path / "ansible").mkdir()
    (tmp_path / "ansible/__init__.py").write_text("raise ModuleNotFoundError('gone', name='ansible')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AnsibleInventoryError, match=": needs Ansible's own programs; pip install 'ansible-core>"):
        ansible_inventory.hosts(path)


def test_pyinfra_has_the_nodes_in_their_groups(tmp_path: Path) -> None:
    path = written(tmp_path, host_epyc={"moehost_services": SERVICES})
    found = hosts(f"ansible:{path}")
    assert list(found) == ["epyc"]
    assert set(found["epyc"]["groups"]) >= {"gpu_nodes", "home"}
    assert found["epyc"]["data"]["services"] == SERVICES
    assert CliRunner().invoke(main, ["check-inventory", f"ansible:{path}"]).stdout == "epyc: qwen\n"


def test_pyinfra_says_a_mistake_in_one_line(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("pyinfra"), f"ansible:{tmp_path}/nowhere", "debug-inventory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith(f"--> pyinfra error: {tmp_path}/nowhere: there is no such file\n")


def test_it_may_stand_in_an_inventory_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path, host_epyc={"moehost_services": SERVICES})
    own = tmp_path / "hosts.py"
    own.write_text(
        f"import moehost.ansible_inventory as _ansible\n\nglobals().update(_ansible.groups({path!r}))\nmore = ['b']\n"
    )
    found = hosts(str(own))
    assert set(found["epyc"]["groups"]) >= {"gpu_nodes", "home"}
    assert found["epyc"]["data"]["ssh_port"] == 2222


def test_a_container_is_also_found_by_the_name_that_ansible_knows(tmp_path: Path) -> None:
    path = written(tmp_path, "[boxes]\nbox moehost_gpu=off ansible_connection=podman ansible_host=moehost-sandbox\n")
    assert set(hosts(f"ansible:{path}")["@podman/moehost-sandbox"]["groups"]) >= {"boxes", "box"}
