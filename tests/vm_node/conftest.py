"""The virtual node, and how long things take on it."""

import copy
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from moehost.virtual import Machine, wait
from tests.fixtures.node import ROOT, Node, changes, instance
from tests.vm_node import engine, figures
from tests.vm_node.figures import measured

FIGURES = ROOT / ".sandbox/vm-figures"


class Virtual(Node):
    """The node under test: a virtual machine."""

    @property
    def machine(self) -> Machine:
        """The machine itself."""
        return Machine(self.name)

    @property
    def kept(self) -> list[str]:
        """Options of ssh for a connection that stays: a new one takes seconds where a CPU is emulated."""
        options = ("ControlMaster=auto", "ControlPersist=yes", f"ControlPath={self.folder}/ssh")
        return [word for option in options for word in ("-o", option)]

    def run(self, command: str) -> str:
        """What a shell command prints on the node; it must succeed."""
        ssh, *words = self.machine.ssh
        done = subprocess.run([ssh, *self.kept, *words, command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def disconnect(self) -> None:
        """End the connection that stays, before a reboot: it would wait for an answer from the boot before."""
        subprocess.run(["ssh", *self.kept, "-O", "exit", "root@127.0.0.1"], capture_output=True)

    def deploy(self, settings: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """A deploy with these settings instead of the scenario's; it may reboot the node."""
        self.disconnect()
        return super().deploy(settings)

    def inventory(self, settings: dict[str, Any] | None = None) -> Path:
        """An inventory of this node with these settings instead of the scenario's."""
        data = (settings or self.settings) | self.machine.inventory_data
        path = self.folder / "hosts.py"
        path.write_text(f"nodes = [({self.name!r}, {data!r})]\n")
        return path

    def answers(self, service: str, port: int) -> str:
        """What a service says to a question, with its key."""
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        text = self.run(
            f"curl --silent --fail --max-time 120 --json '{json.dumps(body)}' "
            f'--header "Authorization: Bearer $(cat /etc/moehost/{service}/api-keys)" '
            f"http://127.0.0.1:{port}/v1/chat/completions"
        )
        return json.loads(text)["choices"][0]["message"]["content"]

    def memory_policies(self, pid: str) -> set[str]:
        """The policies of a process's memory, without the nodes that they name."""
        return {line.split()[1].partition(":")[0] for line in self.run(f"cat /proc/{pid}/numa_maps").splitlines()}

    def reboot(self) -> None:
        """Reboot it by systemd; returns when systemd has started everything again."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.disconnect()
        subprocess.run([*self.machine.ssh, "systemctl reboot"], capture_output=True)
        for _ in range(60):
            time.sleep(2)
            after = subprocess.run(
                [*self.machine.ssh, "cat /proc/sys/kernel/random/boot_id"], capture_output=True, text=True
            ).stdout.strip()
            if after not in ("", before):
                break
        wait(self.machine)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Virtual:
    """The first instance of the scenario."""
    # Molecule begins in the scenario's folder; machines are found from the project's.
    os.chdir(ROOT)
    plain = instance(tmp_path_factory.mktemp("inventory"))
    return Virtual(plain.name, plain.folder)


@pytest.fixture(scope="session")
def both(node: Virtual, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings with which both services run."""
    settings = copy.deepcopy(node.settings)
    with measured("engine and image, made natively and sent"):
        settings["engine"] = engine.bring(node, tmp_path_factory.mktemp("engine"))
    settings["services"].append(settings["services"][0] | {"name": "boxed", "port": 8081, "runtime": "container"})
    with measured("deploy of a service in a container"):
        deployed = changes(node.deploy(settings))
    # What was brought is what the node would have made: the deploy found the image.
    assert "Service | Switch to the engine that is next" in deployed
    assert "Engine | Make a container image of the next release" not in deployed
    return settings


def pytest_terminal_summary(terminalreporter: Any) -> None:
    line = "vm: " + ", ".join(f"{what} {time}" for what, time in figures.taken.items())
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(line + "\n")
    terminalreporter.write_line(line)
