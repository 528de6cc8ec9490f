"""The whole deploy, planned and applied to simulated nodes (pyinfra's `@fake` connector runs nothing)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import planned_node

ROOT = Path(__file__).parents[2]
SERVICE = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}

# What a fresh Debian says; to any other question a simulated node answers nothing and succeeds.
TRIXIE = {
    "for package in aria2": ["aria2", "ca-certificates", "curl", "iproute2", "procps", "python3"],
    "for package in llama.cpp-tools": "llama.cpp-tools",
    "cat /etc/os-release": ["VERSION_CODENAME=trixie", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"'],
    "apt-get indextargets": "Packages trixie main http://mirror.home.arpa/debian/",
}
BOOKWORM = TRIXIE | {
    "cat /etc/os-release": ["VERSION_CODENAME=bookworm", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"'],
}
# An engine that answers, so that a run gets to its end.
WITH_ENGINE = {
    "path=$(readlink": ["package=1", "path=/usr/bin/llama-server", f"sha256={'0' * 64}", "version=1"],
    "basename": "current=",
}


class Deploy:
    """Deploys to simulated nodes, which are described by their name."""

    def __init__(self, folder):
        self.inventory = folder / "hosts.py"

    def __call__(self, nodes, *options, deploy="deploy.py"):
        hosts = [(f"@fake/{name}", {"fake_responses": TRIXIE, **data}) for name, data in nodes.items()]
        self.inventory.write_text(f"nodes = {hosts!r}\n")
        command = [Path(sys.executable).with_name("pyinfra"), self.inventory, deploy, "--json", *options]
        environment = {**os.environ, "PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal exception" not in done.stderr, done.stderr
        return done


@pytest.fixture
def deploy(tmp_path):
    return Deploy(tmp_path)


def changes(done):
    """Names of the operations that a plan wants to change something with, and where."""
    plan = json.loads(done.stdout)["plan"]
    return {each["name"]: each["hosts_with_change"] for each in plan if each["hosts_with_change"]}


def results(done):
    """What a run has done."""
    return json.loads(done.stdout)["results"]


def test_a_node_where_nothing_exists_can_be_planned(deploy):
    done = deploy({"fresh": {"services": [SERVICE]}}, "--dry")
    assert done.returncode == 0, done.stderr
    assert "will fail" not in done.stderr
    assert list(changes(done)) == [
        "Base | Install guards against apt, and what the node has of moehost",
        "Base | Install packages",
        "Base | Make the service account and the directories",
        "Engine | Have a suite with llama.cpp",
        "Engine | Install the packaged llama.cpp",
        "Engine | Make it the current release",
        "Models | Install the program that fetches models",
        "Models | Have m in the store",
        "Service | Install the programs of a start",
        "Service | Have an API key for tiny",
        "Service | Run tiny, warm",
    ]


def test_two_services_are_planned_one_after_the_other(deploy):
    other = {"name": "other", "port": 8081, "model": {"name": "n", "source": "file:///srv/n.gguf"}}
    done = deploy({"fresh": {"services": [SERVICE, other]}}, "--dry")
    names = list(changes(done))
    assert [name for name in names if "store" in name] == [
        "Models | Have m in the store",
        "Models | Have n in the store",
    ]
    assert [name for name in names if "warm" in name] == ["Service | Run tiny, warm", "Service | Run other, warm"]


def test_a_node_that_has_engine_and_model_can_be_planned(deploy):
    done = deploy(
        {"ready": {"fake_responses": WITH_ENGINE | planned_node.responses(), "services": [SERVICE]}}, "--dry"
    )
    assert done.returncode == 0, done.stderr
    assert "will fail" not in done.stderr
    assert "Models | Have m in the store" not in changes(done)
    assert "Service | Run tiny, warm" in changes(done)


def test_plans_render_every_template(deploy, tmp_path):
    # The same deploy, with a note of each template that it takes.
    spy, notes = tmp_path / "spy.py", tmp_path / "notes"
    spy.write_text(
        "from pyinfra import local\n"
        "from roles import operations\n"
        "take = operations._environment.get_template\n"
        "def noted(name):\n"
        f"    with open({str(notes)!r}, 'a') as file:\n"
        "        print(name, file=file)\n"
        "    return take(name)\n"
        "operations._environment.get_template = noted\n"
        "local.include('deploy.py')\n"
    )
    ready = {"fake_responses": WITH_ENGINE | planned_node.responses(), "services": [SERVICE]}
    done = deploy({"fresh": {"services": [SERVICE]}, "ready": ready}, "--dry", deploy=spy)
    assert done.returncode == 0, done.stderr
    templates = {str(path.relative_to(ROOT / "templates")) for path in (ROOT / "templates").rglob("*.j2")}
    assert set(notes.read_text().split()) == templates


def test_wrong_settings_end_only_their_host(deploy):
    nodes = {"good": {"services": [SERVICE]}, "bad": {"services": [{**SERVICE, "contxt": 1}]}}
    done = deploy(nodes, "--dry")
    assert done.returncode == 1
    assert "[@fake/bad]  services[0].contxt: unknown setting; did you mean 'context'?" in done.stderr
    found = changes(done)
    assert len(found) == 11
    assert set(map(tuple, found.values())) == {("@fake/good",)}


def test_nothing_is_asked_of_a_host_with_wrong_settings(deploy):
    done = deploy({"bad": {"services": [{**SERVICE, "contxt": 1}]}, "good": {}}, "--dry", "-vvv", "--debug-facts")
    assert "[@fake/good] >>>" in done.stderr
    assert "[@fake/bad] >>>" not in done.stderr


def test_every_mistake_is_named_when_no_host_is_left(deploy):
    done = deploy({"one": {"servces": []}, "two": {"models_dir": "srv"}}, "--dry")
    assert (done.returncode, done.stdout) == (1, "")
    assert "servces: unknown setting; did you mean 'services'?" in done.stderr
    assert "models_dir: 'srv': write an absolute path of letters, digits and ._-, without .." in done.stderr


@pytest.mark.parametrize("key", ["hf_token_file", "services[0].api_keys_file"])
def test_a_file_that_is_not_on_this_computer_ends_the_host(deploy, key):
    absent = "/nonexistent/file"
    data = {"services": [{**SERVICE, "api_keys_file": absent}]} if "services" in key else {"hf_token_file": absent}
    done = deploy({"bad": data}, "--dry")
    assert done.returncode == 1
    assert f"{key}: {absent} is not a file on this computer; make it or correct the path" in done.stderr


def test_a_system_without_the_package_is_announced_in_the_plan(deploy):
    done = deploy({"old": {"fake_responses": BOOKWORM}}, "--dry")
    assert done.returncode == 0
    line = "engine.source: 'package' needs llama.cpp-tools, which Debian GNU/Linux 12 (bookworm) does not have"
    assert f"[@fake/old] will fail: {line}" in done.stderr


def test_a_host_that_is_refused_fails_and_the_others_go_on(deploy):
    nodes = {"good": {"fake_responses": WITH_ENGINE}, "old": {"fake_responses": BOOKWORM}}
    done = deploy(nodes, "-y")
    assert done.returncode == 1
    assert "Debian GNU/Linux 12 (bookworm) does not have; Debian 13 and later do" in done.stderr
    assert results(done)["failed_hosts"] == ["@fake/old"]
    (last,) = [
        each for each in results(done)["operations"] if each["name"] == "Service | Install the programs of a start"
    ]
    assert last["success"] == ["@fake/good"]


def test_a_run_without_a_mistake_exits_well(deploy):
    done = deploy({"good": {"fake_responses": WITH_ENGINE}}, "-y")
    assert done.returncode == 0, done.stderr
    assert results(done)["failed_hosts"] == []
    assert results(done)["totals"]["error"] == 0
    assert results(done)["totals"]["success"] > 0


def test_no_secret_is_shown_however_talkative_the_run_is(deploy, tmp_path):
    (tmp_path / "token").write_text("hf_secret_of_the_owner\n")
    nodes = {"good": {"fake_responses": WITH_ENGINE, "hf_token_file": str(tmp_path / "token")}}
    done = deploy(nodes, "-y", "-vvv", "--diff", "--debug")
    assert done.returncode == 0, done.stderr
    assert "/etc/moehost/hub-token" in done.stderr
    assert "hf_secret_of_the_owner" not in done.stdout + done.stderr
