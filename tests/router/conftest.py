"""Three nodes and the router before them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moehost.results import label
from roles.router.facts import ACCOUNT, BALANCER
from tests.fixtures.node import ROOT
from tests.router.clients import Client

FRONT = "moehost-router-front"
NODES = [f"moehost-router-{number}" for number in (1, 2, 3)]
FIGURES = ROOT / ".sandbox/router-figures"


class Fleet:
    """The nodes, the router, and what is done to them from this computer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
        text = (scenario / "node.yml").read_text()
        self.settings: dict[str, Any] = {name: yaml.safe_load(text.replace("INSTANCE", name)) for name in NODES}
        self.settings[FRONT] = yaml.safe_load((scenario / f"{FRONT}.yml").read_text())

    def run(self, name: str, command: str, check: bool = True) -> str:
        """What a shell command prints in a container."""
        done = subprocess.run(["podman", "exec", name, "sh", "-c", command], capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def inventory(self, **router: Any) -> Path:
        """An inventory of all, with other settings of the router."""
        settings = copy.deepcopy(self.settings)
        settings[FRONT]["router"].update(router)
        hosts = {name: [(f"@podman/{each}", settings[each]) for each in names] for name, names in
                 (("nodes", NODES), ("routers", [FRONT]))}  # fmt: skip
        path = self.folder / "hosts.py"
        path.write_text("".join(f"{name} = {each!r}\n" for name, each in hosts.items()))
        return path

    def moehost(self, *words: str, **router: Any) -> subprocess.CompletedProcess[str]:
        """A command of moehost's with this inventory."""
        command = ["moehost", *words, "--inventory", str(self.inventory(**router))]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def deploy(self, *hosts: str, **router: Any) -> list[str]:
        """A deploy to all of them or to some, with other settings of the router; what changed."""
        limits = [word for host in hosts for word in ("--limit", f"@podman/{host}")]
        command = ["pyinfra", str(self.inventory(**router)), *limits, "deploy.py", "--yes", "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.said = done.stderr
        return [each["name"] for each in json.loads(done.stdout)["results"]["operations"] if each["success"]]

    def status(self) -> dict[str, Any]:
        """What the router knows, by the names of containers."""
        done = self.moehost("router", "status", "--json")
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)[f"@podman/{FRONT}"]
        return {name.removeprefix("@podman/"): node for name, node in seen["nodes"].items()}

    def requests(self) -> dict[str, int]:
        """How many requests each node has, asked at once where HAProxy runs."""
        said = json.loads(self.run(FRONT, f"runuser -u {ACCOUNT} -- {BALANCER} status"))["nodes"]
        return {name: said[label(f"@podman/{name}")]["requests"] for name in NODES}

    def state(self, name: str) -> str:
        """What the router thinks of a node."""
        return str(self.status()[name]["models"]["tiny"]["state"])

    def asked(self, name: str) -> int:
        """How many chats a node's gateway has had since its start."""
        return int(self.run(name, "journalctl --no-pager --output cat --unit moehost-gateway | "
                                  "grep -c '\"uri\":\"/tiny/v1/chat/completions\"' || true"))  # fmt: skip

    def home_of(self, client: Client, text: str, **more: Any) -> str:
        """The node that gets a chat."""
        before = {name: self.asked(name) for name in NODES}
        assert client.chat(text, **more).status == 200
        # The log is written when the answer is through.
        for _ in range(50):
            found = [name for name in NODES if self.asked(name) > before[name]]
            if found:
                (name,) = found
                return name
            time.sleep(0.1)
        raise AssertionError("no node has noted it")

    def wait_ready(self, count: int, within_s: float = 60) -> None:
        """Wait until so many nodes are ready."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            states = [node["models"]["tiny"]["state"] for node in self.status().values()]
            if sum(state.startswith("UP") for state in states) == count:
                return
        raise AssertionError(states)

    def stat(self, of: str) -> str:
        """Identity of the router's first process."""
        return self.run(FRONT, f"systemctl show --property {of} --value moehost-router.service")


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """All of it."""
    return Fleet(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="session")
def client(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A user who has a key."""
    words = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", FRONT]
    address = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    ca = tmp_path_factory.mktemp("ca") / "root.crt"
    ca.write_text(fleet.moehost("keys", "ca", f"@podman/{FRONT}").stdout)
    fleet.moehost("keys", "revoke", "alice", f"@podman/{FRONT}")
    added = fleet.moehost("keys", "add", "alice", f"@podman/{FRONT}")
    assert added.stdout.strip(), added.stderr
    yield Client(address, ca, added.stdout.strip())
    fleet.moehost("keys", "revoke", "alice", f"@podman/{FRONT}")


@pytest.fixture(scope="session")
def figures() -> dict[str, str]:
    """What the tests measure, by name; printed as one line in the end."""
    return _figures


_figures: dict[str, str] = {}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    line = "router: " + ", ".join(f"{name} {value}" for name, value in _figures.items())
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(line + "\n")
    terminalreporter.write_line(line)
