"""The node under test, the repository that its engine is built from, and the figures that come out of it.

The engine is the stand-in of `tests/stand_in`, or a real ik_llama.cpp: IK_LLAMA_SOURCE names its repository, a path
on this computer. Tests that need an engine with a fault are for the stand-in.
"""

import json
import os
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest

from moehost.settings_engine import IK_COMMIT
from tests.fixtures.node import ROOT, Node, instance
from tests.stand_in import repository

REAL = os.environ.get("IK_LLAMA_SOURCE")
URL = "/srv/git/engine"
FIGURES = ROOT / f".sandbox/{os.environ.get('MOLECULE_SCENARIO_NAME', 'engine')}-figures"


class Engine:
    """The engine of the node: its commits, its releases, and deploys that build or switch."""

    def __init__(self, node: Node, source: Path, commits: dict[str, str]) -> None:
        self.node, self.source, self.commits = node, source, commits

    def settings(self, commit: str = "good", service: dict | None = None, **engine):
        """The scenario's settings with an engine of this commit."""
        settings = self.node.changed_settings(**(service or {}))
        settings["engine"] = {"source": "git", "url": URL, "commit": self.commits.get(commit, commit), **engine}
        if not REAL and self.build["source"] == "package":
            # The stand-in is slow by nature: a canary would go back to the packaged engine.
            settings["engine"]["canary_share"] = 0
        return settings

    def deploy(self, commit: str = "good", service: dict | None = None, **engine):
        """A deploy with an engine of this commit."""
        return self.node.deploy(self.settings(commit, service, **engine))

    @property
    def releases(self) -> list[str]:
        """Names of the whole releases, newest first."""
        return self.node.run("cd /opt/moehost/engine/releases && ls -t").split()

    def link(self, link: str) -> str:
        """The release that a link leads to."""
        return self.node.run(f"basename $(readlink /opt/moehost/engine/{link})")

    @property
    def build(self) -> dict:
        """The build.json of the current release."""
        return json.loads(self.node.run("cat /opt/moehost/engine/current/build.json"))

    def command(self, *words: str) -> subprocess.CompletedProcess:
        """`moehost engine ...` on the node, with the settings of the last deploy."""
        inventory = ("--inventory", str(self.node.folder / "hosts.py"))
        command = ["moehost", "engine", *words, f"@podman/{self.node.name}", *inventory]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    @property
    def serving(self) -> str:
        """The release that the running server belongs to."""
        pid = self.node.run(f"systemctl show --property MainPID --value {self.node.unit}")
        path = self.node.run(f"readlink /proc/{pid}/exe")
        return path.removeprefix("/opt/moehost/engine/releases/").partition("/")[0]


class Watch:
    """Asks the service for its health ten times a second, and keeps the longest time without an answer."""

    def __init__(self, node: Node, port: int = 8080) -> None:
        # A process in the container outlives the `podman exec` that began it, so it is told when to end.
        self._node, self._stop = node, f"/run/watch-{uuid.uuid4()}.stop"
        health = f"curl -s -o /dev/null -m 2 http://127.0.0.1:{port}/health"
        script = f"until [ -e {self._stop} ]; do {health} && date +%s.%N; sleep 0.1; done; rm {self._stop}"
        command = ["podman", "exec", node.name, "sh", "-c", script]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.answers: list[float] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while not self.answers:
            time.sleep(0.1)

    def _read(self) -> None:
        assert self._process.stdout
        self.answers.extend(float(line) for line in self._process.stdout)

    def longest_gap_s(self) -> float:
        """End the watch; the longest time between two answers, seconds."""
        time.sleep(0.5)
        self._node.run(f"touch {self._stop}")
        self._process.wait(timeout=10)
        self._reader.join(timeout=5)
        assert len(self.answers) > 1
        return max(b - a for a, b in zip(self.answers, self.answers[1:], strict=False))


@pytest.fixture(scope="session")
def node(tmp_path_factory) -> Node:
    """The first instance of the scenario."""
    return instance(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="session")
def engine(node, tmp_path_factory) -> Engine:
    """The engine, with its repository on the node."""
    if REAL:
        source, commits = Path(REAL), {"good": IK_COMMIT}
        source = source / ".git" if (source / ".git").is_dir() else source
    else:
        source = tmp_path_factory.mktemp("stand-in") / "engine"
        commits = repository.make(source)
    node.run(f"rm -rf {URL} && mkdir -p {URL}")
    subprocess.run(["podman", "cp", f"{source}/.", f"{node.name}:{URL}"], check=True)
    # As a server offers it: the files of a commit are fetched when it is checked out.
    node.run(f"printf '[uploadpack]\\n\\tallowFilter = true\\n\\tallowAnySHA1InWant = true\\n' >>{URL}/config")
    return Engine(node, source, commits)


@pytest.fixture(scope="session")
def watch(node):
    """Starts a watch over the service."""
    return lambda: Watch(node)


@pytest.fixture(scope="session")
def figures():
    """What the tests measure, by name; printed as one line in the end."""
    return _figures


_figures: dict[str, str] = {}


def pytest_configure(config):
    config.addinivalue_line("markers", "stand_in: needs an engine with faults, so the stand-in")
    config.addinivalue_line("markers", "timed: counts how long a service is away, so nothing may run beside it")


def pytest_collection_modifyitems(items):
    if REAL:
        for item in items:
            if item.get_closest_marker("stand_in"):
                item.add_marker(pytest.mark.skip(reason="needs the stand-in engine"))


def pytest_terminal_summary(terminalreporter):
    kind = f"ik_llama.cpp {IK_COMMIT[:8]}" if REAL else "stand-in"
    line = f"engine ({kind}): " + ", ".join(f"{name} {value}" for name, value in _figures.items())
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(line + "\n")
    terminalreporter.write_line(line)
