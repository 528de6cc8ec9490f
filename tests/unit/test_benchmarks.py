"""The benchmark of deploys, as far as it needs no node: bad input, the page of recorded figures, the playbook."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import deploy, figures, values
from inventory.hosts import sandbox
from moehost import settings
from tests.fixtures import planned_node

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "benchmarks/ansible"
SETTINGS = settings.read(sandbox[0][1])


def row(tool: str, nodes: int, what: figures.What, number: int, seconds: float) -> figures.Row:
    return figures.Row(tool, nodes, what, number, seconds, 0, 30, 2, 1_000_000, 2_000_000)


def recorded(load: str = "0.1") -> figures.Figures:
    """Figures of two rounds; Ansible takes 5 and 6 times as long, and four times as long on 16 nodes."""
    tools = {figures.MOEHOST: (1.0, 1.0), figures.ANSIBLE: (5.0, 6.0), figures.LEAN: (4.0, 4.0)}
    rows = (
        row(tool, nodes, what, number, seconds * (4 if nodes == 16 else 1))
        for nodes in (1, 16)
        for what in ("first", "again", "one change")
        for tool, both in tools.items()
        for number, seconds in enumerate(both)
    )
    machine = dict.fromkeys(("processor", "cores", "memory_gib", "system", "kernel", "load"), "any")
    machine["load"] = load
    software = dict.fromkeys(("python", "pyinfra", "paramiko", "ansible-core", "podman", "openssh"), "1")
    return figures.Figures("2026-11-29", machine, software, tuple(rows))


def run(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(deploy.main, [str(each) for each in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The playbook's variables for a node."""
    file = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([Path(sys.executable).with_name("moehost"), "tiny-model", file], check=True, capture_output=True)
    return values.values(SETTINGS, planned_node.machine(), "forky", "http://mirror.home.arpa/debian", file)


@pytest.mark.parametrize("counts", ["0", "65", "1,", "four", "1;4"])
def test_numbers_of_nodes_that_are_none_are_refused(counts):
    code, said = run("--nodes", counts)
    assert code == 2
    assert f"'{counts}': write numbers from 1 to 64 with commas between them, e.g. 1,4,16" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file or directory; run the benchmark first"), ("{}", "holds no figures of this benchmark")],
)
def test_a_page_of_no_figures_is_refused_in_one_line(text, reason, tmp_path):
    out, page = tmp_path / "figures.json", tmp_path / "page.md"
    if text is not None:
        out.write_text(text)
    code, said = run("--only-report", "--out", out, "--report", page)
    assert (code, len(said.splitlines()), page.exists()) == (2, 1, False)
    assert said.startswith(f"moehost: {out}: {reason}")


def test_recorded_figures_become_a_page(tmp_path):
    out, page = tmp_path / "figures.json", tmp_path / "page.md"
    out.write_text(recorded().to_json())
    assert figures.parse(out) == recorded()
    assert run("--only-report", "--out", out, "--report", page) == (0, f"moehost: wrote {page}\n")
    lines = page.read_text().splitlines()
    counted = "| 30 and 30 | 2 and 2 | 3.00 and 3.00 |"
    assert f"| 1 | nothing to do | 1.00 | 5.50 [5.00, 6.00] | 5.5 [5.0, 6.0] {counted}" in lines
    assert f"| 16 | first run | 4.00 | 22.00 [20.00, 24.00] | 5.5 [5.0, 6.0] {counted}" in lines
    assert any("takes moehost 4.0 times as long" in line for line in lines)


def test_a_benchmark_that_was_ended_makes_no_page(tmp_path):
    out, page = tmp_path / "figures.json", tmp_path / "page.md"
    whole = recorded()
    out.write_text(dataclasses.replace(whole, rows=whole.rows[:4]).to_json())
    code, said = run("--only-report", "--out", out, "--report", page)
    assert (code, page.exists()) == (2, False)
    assert said == "moehost: the benchmark did not come to its end; run it again\n"


def test_a_page_says_that_the_computer_was_busy():
    warning = "The computer was busy with other things"
    assert warning in deploy.page(recorded("2.5"))
    assert warning not in deploy.page(recorded())


def test_the_page_that_is_published_is_that_of_its_figures():
    assert (ROOT / "docs/performance.md").read_text() == deploy.page(figures.parse(ROOT / "docs/performance.json"))


def test_the_playbook_can_be_read(tmp_path, told):
    (tmp_path / "values.json").write_text(json.dumps(told))
    (tmp_path / "hosts.yml").write_text(json.dumps({"nodes": {"hosts": {"node": {}}}}))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--syntax-check", "--inventory", tmp_path / "hosts.yml",
         "--extra-vars", f"@{tmp_path / 'values.json'}", PLAYBOOK / "site.yml"],
        capture_output=True, text=True, env={**os.environ, "ANSIBLE_CONFIG": str(PLAYBOOK / "ansible.cfg")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_playbook_uses_what_ansible_core_has():
    texts = [path.read_text() for path in PLAYBOOK.rglob("*.yml")]
    modules = {line.split(":")[0].strip() for text in texts for line in text.splitlines() if ".builtin." in line}
    assert "ansible.builtin.template" in modules
    assert all(each.startswith("ansible.builtin.") for each in modules)


def test_the_playbook_is_told_what_a_deploy_plans(told):
    assert told["command_line"].startswith(
        "/opt/moehost/engine/current/bin/llama-server -m /srv/models/tiny-qwen35moe/"
    )
    assert told["service"]["start_limit_s"] > told["service"]["start_timeout_s"]
    assert json.loads(told["model"]["manifest"])["architecture"] == "qwen35moe"
    assert "inspection" in told["modules"]
