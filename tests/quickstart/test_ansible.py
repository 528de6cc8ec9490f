"""Ansible deploys by examples/ansible/deploy.yml: what it calls changed, failed and checked is so on the node.

The inventory is one of Ansible's, with its own configuration, variables, and a host that is none of moehost's. The
node is reached over SSH, and may have been provisioned before.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.quickstart.conftest import LOGIN, MODEL, Desk, on_node

SERVICE = {
    "name": "qwen",
    "model": {"name": "Qwen3.5-397B-A17B-IQ4_NL", "source": f"file:.sandbox/{MODEL.name}"},
    "context": "{{ slots * 1024 }}",
    "ubatch": 512,
    # Two that wait for each other get nowhere on a busy computer.
    "threads": 1,
    "threads_batch": 1,
}
NODES = {"slots": 4, "moehost_services": [SERVICE], "moehost_gpu": "off", "moehost_engine": {"source": "package"}}


class Estate:
    """An inventory of Ansible's, as its owner has it."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.folder = desk, desk.home / "estate"
        (self.folder / "group_vars").mkdir(parents=True)
        (self.folder / "ansible.cfg").write_text(f"[defaults]\nremote_user = {LOGIN}\n")
        (self.folder / "hosts.ini").write_text(
            f"[gpu_nodes]\nepyc ansible_host={desk.address}\n\n[web]\nwww.home.arpa\n"
        )
        self.variables()

    def variables(self, **changed: object) -> None:
        """Write the variables of the nodes, some of them other than before."""
        (self.folder / "group_vars/gpu_nodes.yml").write_text(yaml.safe_dump(NODES | changed))

    def play(self, *words: str) -> tuple[dict[str, int], str]:
        """What the recap says of the node, and all that was said."""
        command = f"ansible-playbook -i {self.folder}/hosts.ini examples/ansible/deploy.yml {' '.join(words)}"
        said = self.desk.run(command, ANSIBLE_CONFIG=f"{self.folder}/ansible.cfg", ANSIBLE_NOCOLOR="1").stdout
        print(said)
        (recap,) = re.findall(r"^epyc +: (.*)$", said, re.MULTILINE)
        assert "www.home.arpa" not in said
        return {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", recap)}, said


@pytest.fixture(scope="module")
def estate(desk: Desk) -> Estate:
    return Estate(desk)


def context() -> str | None:
    """The context in the plan of the service, if there is one."""
    plan = on_node("cat /etc/moehost/qwen/plan.json 2>/dev/null || true")
    argv = json.loads(plan)["argv"] if plan else ["-c", None]
    return argv[argv.index("-c") + 1]


def test_check_says_changed_and_changes_nothing(estate: Estate) -> None:
    before = context()
    assert before != "4096"
    recap, _ = estate.play("--check")
    assert (recap["changed"], recap["failed"]) == (1, 0)
    assert context() == before


def test_a_deploy_says_changed_once(estate: Estate) -> None:
    recap, said = estate.play()
    assert (recap["changed"], recap["failed"]) == (1, 0)
    assert "Service | Run qwen, warm" in said
    assert context() == "4096"
    assert estate.play()[0]["changed"] == 0
    assert estate.play("--check")[0]["changed"] == 0


def test_a_wrong_variable_is_failed_with_its_reason(estate: Estate) -> None:
    estate.variables(moehost_models_dir="models")
    recap, said = estate.play()
    estate.variables()
    assert (recap["changed"], recap["failed"]) == (0, 1)
    assert "models_dir: 'models'" in said


def test_moehosts_commands_take_the_inventory(estate: Estate) -> None:
    """`ansible:PATH` is an inventory wherever one is named."""
    for words in ("doctor ansible:{}", "facts @epyc --inventory ansible:{}", "check-inventory ansible:{}"):
        done: subprocess.CompletedProcess[str] = estate.desk.run(
            f"moehost {words.format(estate.folder / 'hosts.ini')}"
        )
        assert done.returncode == 0, done.stdout


def test_the_way_through_another_host(estate: Estate) -> None:
    """ProxyJump, with the node itself for the host in between: sshd sees a connection from its own address."""
    (estate.desk.home / ".ssh/config").write_text(f"Host bastion\n  HostName {estate.desk.address}\n")
    jump = f"-o ProxyJump={LOGIN}@bastion"
    peers = "ss --no-header --tcp --numeric state established sport = :22"
    for variables, through in (({}, False), ({"ansible_ssh_common_args": jump}, True)):
        estate.variables(**variables)
        done = estate.desk.run(f"pyinfra ansible:{estate.folder}/hosts.ini exec -- '{peers}'")
        assert done.returncode == 0, done.stdout
        assert (f" {estate.desk.address}:22 {estate.desk.address}:" in " ".join(done.stdout.split())) == through
    estate.variables()
    (estate.desk.home / ".ssh/config").unlink()


def test_the_example_is_an_inventory_but_for_its_placeholders(desk: Desk) -> None:
    done = desk.run("moehost check-inventory ansible:examples/ansible/hosts.yml")
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert "hf://OWNER/REPO/PATH@COMMIT" in done.stdout
    assert Path(desk.project, "examples/ansible/group_vars/gpu_nodes.yml").is_file()
