"""The two tools: what each is asked for, and what it says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

from benchmarks.nodes import Access, Node

ROOT = Path(__file__).parents[1]
PLAYBOOK = ROOT / "benchmarks/ansible"
Calendar = Literal["weekly", "monthly"]


class ToolError(RuntimeError):
    """A run that did not do what it was asked for, in a few lines."""


@dataclass(frozen=True)
class Run:
    """
    A run: how long it took, and how much it changed, in whatever the tool counts.

    + commands: for each node, the mean of all; None where each of them has a session of its own
    """

    seconds: float
    changed: int
    commands: float | None = None


class Tool(Protocol):
    """Something that provisions nodes over SSH."""

    @property
    def name(self) -> str:
        """What its rows are called."""

    def deploy(self, nodes: list[Node], calendar: Calendar) -> Run:
        """Provision nodes; the calendar is the setting that the benchmark changes. Raises ToolError."""


@dataclass(frozen=True)
class Moehost:
    """pyinfra with deploy.py.

    + settings: of each node
    """

    access: Access
    settings: dict[str, Any]
    name: str = "moehost"

    def deploy(self, nodes: list[Node], calendar: Calendar) -> Run:
        """Provision nodes. Raises ToolError."""
        data = self.settings | {"verify_models": calendar}
        hosts = [(each.name, data | self.access.to(each)) for each in nodes]
        inventory = self.access.folder / "hosts.py"
        inventory.write_text(f"nodes = {hosts!r}\n")
        done, seconds = _timed([_program("pyinfra"), str(inventory), "deploy.py", "--yes", "--json"], {})
        said = json.loads(done.stdout)
        if said["results"]["failed_hosts"]:
            raise ToolError(_end(done))
        commands = fmean(each["commands"] for each in said["hosts"].values())
        return Run(seconds, said["results"]["totals"]["success"], commands)


@dataclass(frozen=True)
class Ansible:
    """ansible-core with the playbook.

    + values: its variables
    + skipped: tags of tasks that are left out
    """

    access: Access
    values: dict[str, Any]
    name: str = "ansible"
    skipped: str = ""

    def deploy(self, nodes: list[Node], calendar: Calendar) -> Run:
        """Provision nodes. Raises ToolError."""
        folder = self.access.folder
        common = f"-o UserKnownHostsFile={self.access.known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
        reach = {"ansible_user": "root", "ansible_ssh_private_key_file": str(self.access.key),
                 "ansible_ssh_common_args": common}  # fmt: skip
        hosts = {each.name: {"ansible_host": each.address} for each in nodes}
        # JSON is YAML.
        (folder / "hosts.yml").write_text(json.dumps({"nodes": {"hosts": hosts, "vars": reach}}))
        (folder / "values.json").write_text(json.dumps(self.values | {"verify_models": calendar}))
        skipped = ["--skip-tags", self.skipped] if self.skipped else []
        done, seconds = _timed(
            [_program("ansible-playbook"), "--inventory", str(folder / "hosts.yml"),
             "--extra-vars", f"@{folder / 'values.json'}", *skipped, str(PLAYBOOK / "site.yml")],
            {"ANSIBLE_CONFIG": f"{PLAYBOOK}/ansible.cfg", "ANSIBLE_SSH_CONTROL_PATH_DIR": str(_sockets(self.access))},
        )  # fmt: skip
        recap = re.findall(r" ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", done.stdout)
        if len(recap) != len(nodes) or any(int(number) for _, *numbers in recap for number in numbers):
            raise ToolError(_end(done))
        return Run(seconds, sum(int(changed) for changed, _, _ in recap))


def disconnected(access: Access) -> None:
    """End the connections of Ansible's that stay from one run to the next."""
    for socket in _sockets(access).glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"], capture_output=True)


def _sockets(access: Access) -> Path:
    return access.folder / "cp"


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _timed(command: list[str], environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """A program that must succeed, and how long it took, its own start included."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise ToolError(_end(done))
    return done, seconds


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """The last words of a run that failed."""
    said = [line.rstrip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return f"{Path(done.args[0]).name} ended with {done.returncode}:\n" + "\n".join(said[-25:])
