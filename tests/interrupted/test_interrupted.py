"""A deploy that is killed at any moment is finished by the next one.

Fifty times, on two nodes side by side, over SSH: something is to be done, the deploy of it is killed (SIGKILL, with
its children) at a random moment, the next deploy must succeed, the service must answer, and nothing may have failed.
Every few kills, and at the end, one more deploy must find nothing to do. The seed is printed; INTERRUPTED_SEED
repeats a run.
"""

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks import nodes
from benchmarks.nodes import Access, Node
from moehost import sandbox
from tests.faults import elsewhere, table
from tests.fixtures.node import ROOT, changes

NAMES = ("moehost-interrupted", "moehost-interrupted2")
SEED = int(os.environ.get("INTERRUPTED_SEED", random.randrange(10**6)))
SERVICE = {
    "name": "tiny",
    "model": {"name": "tiny-qwen35moe", "source": "file:.sandbox/tiny-qwen35moe.gguf"},
    "ubatch": 512,
    # Others may be at work on this computer, and threads wait for each other in circles.
    "threads": 1,
    "threads_batch": 1,
}
# What there is to do when the deploy is killed: a state of the node, other settings, and how long a deploy of it
# takes at least, in seconds: the kill comes within that time.
FRESH = ("a fresh node", "fresh", {}, 12)
SITUATIONS = [
    ("another context", "true", {"context": 4096}, 3),
    ("a model that is gone", "rm -r /srv/models/tiny-qwen35moe", {}, 4),
    ("an engine that is gone", "apt-get remove --yes llama.cpp-tools && rm -r /opt/moehost/engine", {}, 6),
    ("another port and a stopped service", "systemctl stop llama-server-tiny", {"port": 8090}, 3),
    ("a package cut off by dpkg", "dpkg --unpack /var/cache/aria2.deb", {}, 4),
    ("lost files", "rm -r /etc/moehost /usr/local/lib/moehost /usr/local/libexec/moehost", {}, 4),
    ("another name", "true", {"name": "other"}, 3),
    ("a broken unit", "truncate -s 100 /etc/systemd/system/llama-server-other.service", {"name": "other"}, 3),
]
# For each of the two nodes; 25 kills.
ROUNDS = [FRESH, *SITUATIONS, *SITUATIONS, *SITUATIONS]


@dataclass
class Victim:
    """A node whose deploys are killed, one after the other; what came of each."""

    name: str
    access: Access
    public_key: str
    chance: random.Random
    there: Node | None = None
    hits: list[bool] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)

    def run(self, command: str) -> str:
        return sandbox.execute(self.name, "sh", "-c", command)

    def deploy(self, service: dict[str, Any]) -> subprocess.Popen[str]:
        """Start a deploy, in a process group of its own."""
        assert self.there
        inventory = self.access.folder / "hosts.py"
        settings = {"gpu": "off", "engine": {"source": "package"}, "services": [service]}
        inventory.write_text(f"nodes = [({self.name!r}, {settings | self.access.to(self.there)!r})]\n")
        command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def changed_by(self, process: subprocess.Popen[str]) -> list[str]:
        """Names of the operations that changed something in a deploy that must succeed."""
        stdout, stderr = process.communicate(timeout=600)
        return changes(subprocess.CompletedProcess([], process.returncode, stdout, stderr[-3000:]))

    def bears(self, situation: str, command: str, change: dict[str, Any], at_most_s: float) -> dict[str, Any]:
        """One kill, and the deploy after it; the settings of the service."""
        if command == "fresh":
            [self.there] = nodes.start([self.name], self.public_key)
            self.access.know([self.there])
        else:
            if "aria2.deb" in command:
                self.run(
                    "cd /var/cache && ls aria2.deb || (apt-get download --quiet aria2 && mv aria2_*.deb aria2.deb)"
                )
            self.run(command)
        service = SERVICE | change
        killed = self.deploy(service)
        moment_s = self.chance.uniform(0.5, at_most_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(timeout=moment_s)
        self.hits.append(killed.poll() is None)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        _, talk = killed.communicate()
        last = [line for line in talk.splitlines() if "Starting operation" in line]

        started = time.monotonic()
        self.changed_by(self.deploy(service))
        self.recovered_s.append(time.monotonic() - started)
        print(
            f"{self.name} {len(self.hits):2}: {situation}: killed after {moment_s:.1f} s, at work: {self.hits[-1]}, "
            f"{last[-1].strip() if last else 'early'}; the next deploy took {self.recovered_s[-1]:.1f} s"
        )
        self.answers(service)
        assert self.run("systemctl --failed --plain --no-legend") == ""
        return service

    def answers(self, service: dict[str, Any]) -> None:
        header = f"$(cat /etc/moehost/{service['name']}/api-keys)"
        answer = self.run(
            f'curl --silent --fail --header "Authorization: Bearer {header}" '
            """--data '{"prompt": "once", "n_predict": 4}' """
            f"http://127.0.0.1:{service.get('port', 8080)}/completion"
        )
        assert json.loads(answer)["timings"]["predicted_n"] == 4

    def bears_all(self) -> None:
        """All rounds; every fifth time, and in the end, nothing is left to do."""
        for number, each in enumerate(ROUNDS, start=1):
            service = self.bears(*each)
            if number % 5 == 0:
                assert self.changed_by(self.deploy(service)) == [], each[0]


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Victim]]:
    print(f"\nINTERRUPTED_SEED={SEED}")
    made = [(name, Access(tmp_path_factory.mktemp(name))) for name in NAMES]
    yield [Victim(name, access, access.make(), random.Random(f"{SEED} {name}")) for name, access in made]
    for name in NAMES:
        sandbox.down(name)


def test_the_next_deploy_finishes_what_a_killed_one_began(victims: list[Victim]) -> None:
    with ThreadPoolExecutor(len(victims)) as pool:
        for done in [pool.submit(each.bears_all) for each in victims]:
            done.result()
    hits = [hit for each in victims for hit in each.hits]
    recovered_s = [seconds for each in victims for seconds in each.recovered_s]
    seen = (
        f"{sum(hits)} of {len(hits)} met a deploy at work; the next one took {statistics.median(recovered_s):.0f} s"
    )
    table.record(elsewhere.KILLS, f"{seen} (median), {max(recovered_s):.0f} s at most", max(recovered_s))
    print(seen)
    assert len(hits) == 50
    assert sum(hits) >= 40, "deploys have become faster than the times in SITUATIONS: shorten them"
