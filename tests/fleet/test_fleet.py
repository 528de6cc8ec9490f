"""`moehost deploy` and `moehost status` over sixteen machines: one is broken, one slow, two can't be reached."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.node import ROOT
from tests.fixtures.waiting import until
from tests.fleet.nodes import ABSENT, GROUPS, MENDED, NODES, RIGHT, SLOW_S, fleet, run

FIGURES = ROOT / ".sandbox/fleet-figures"
# Each by itself waits so long for a connection, and a run over all of them no longer.
CONNECT_S = 10


@dataclass
class Told:
    """A command that has ended."""

    code: int
    nodes: dict[str, dict[str, Any]]
    talk: str
    wall_s: float

    @property
    def outcomes(self) -> dict[str, list[str]]:
        """The nodes by how they came out."""
        found: dict[str, list[str]] = {}
        for name, each in self.nodes.items():
            found.setdefault(each["outcome"], []).append(name)
        return found

    def reason(self, name: str) -> str:
        """Step and reason with which a node failed."""
        failed = self.nodes[name]["failed"]
        return f"{failed['step']}: {failed['reason']}"

    def changed(self) -> list[str]:
        """Nodes on which something was changed."""
        return [name for name, each in self.nodes.items() if any(role["changed"] for role in each["roles"] or ())]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    FIGURES.unlink(missing_ok=True)
    began_s = time.monotonic()
    with fleet(tmp_path_factory.mktemp("fleet")) as found:
        figure(f"sixteen nodes were there after {time.monotonic() - began_s:.0f} s")
        yield found


def figure(line: str) -> None:
    """What is worth seeing."""
    with FIGURES.open("a") as file:
        print(line, file=file)


def start(inventory: Path, *arguments: str) -> subprocess.Popen[str]:
    words = ["moehost", *arguments[:1], str(inventory), *arguments[1:], "--json"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def moehost(inventory: Path, *arguments: str) -> Told:
    began_s = time.monotonic()
    process = start(inventory, *arguments)
    stdout, talk = process.communicate(timeout=500)
    assert stdout, talk
    return Told(process.returncode, json.loads(stdout)["nodes"], talk, time.monotonic() - began_s)


def deploy(inventory: Path, *arguments: str) -> Told:
    return moehost(inventory, "deploy", "--yes", *arguments)


def test_thirteen_come_out_right_and_each_failure_has_its_reason(inventory: Path) -> None:
    told = deploy(inventory)
    figure(f"first deploy to all: {told.wall_s:.0f} s")
    assert told.code == 1
    assert told.outcomes == {"ok": RIGHT, "failed": ["broken", *ABSENT]}, told.talk
    assert told.reason("broken") == (
        "deploy: Base | Finish an interrupted dpkg: Errors were encountered while processing: ill"
    )
    assert re.match(r"deploy: Could not connect \(.*Unable to connect to port 2222", told.reason("closed"))
    assert re.match(r"deploy: Could not connect \(.*time", told.reason("dropped"))
    assert told.nodes["epyc"]["services"] == {"tiny": {"state": "ready", "says": None}}
    assert sorted(told.changed()) == sorted(RIGHT)
    assert {role["role"] for role in told.nodes["node05"]["roles"]} >= {"Base", "Engine", "Host tuning"}
    for name in ("epyc", "node05", "slow"):
        assert run(name, "getent passwd moehost-fetch && test -e /opt/moehost/engine/next/build.json")
    assert json.loads(run("epyc", "curl --silent http://127.0.0.1:8080/health"))["status"] == "ok"
    # Of each node and role it was told when it was through.
    assert f"moehost: node05: Base {told.nodes['node05']['roles'][0]['duration_s']:.1f} s, " in told.talk


def test_the_second_run_changes_nothing_and_waits_for_the_slow_one_once(inventory: Path) -> None:
    told = deploy(inventory)
    slow_s = told.nodes["slow"]["duration_s"]
    others_s = sorted(told.nodes[name]["duration_s"] for name in RIGHT if name != "slow")
    figure(f"second deploy to all: {told.wall_s:.0f} s, of which the slow node {slow_s:.0f} s; others {others_s}")
    assert told.outcomes == {"ok": RIGHT, "failed": ["broken", *ABSENT]}, told.talk
    assert told.changed() == []
    # Its commands alone, which wait half a second each, take longer than any other's whole deploy.
    assert slow_s > 20 * SLOW_S
    assert slow_s > others_s[-1]
    assert told.wall_s < 2 * slow_s + CONNECT_S
    # Who was through told it before the slow one was.
    lines = told.talk.splitlines()
    through = {name: max(at for at, line in enumerate(lines) if f" {name}: " in line) for name in RIGHT}
    assert max(through, key=through.__getitem__) == "slow"


def test_limits_are_hosts_groups_and_globs(inventory: Path) -> None:
    told = deploy(inventory, "--limit", "node1*", "--limit", "third")
    assert (told.code, told.outcomes) == (0, {"ok": ["node07", "node08", "node09", "node10", "node11"]})


def sessions(name: str) -> int:
    """How often somebody has come to a node over SSH."""
    return int(run(name, "journalctl --quiet --no-pager --unit ssh | grep -c Accepted"))


def test_batches_stop_after_a_failure(inventory: Path) -> None:
    before = sessions("node07")
    told = deploy(inventory, "--serial", "4", "--max-failures", "1")
    figure(f"batches of four up to the broken node: {told.wall_s:.0f} s")
    assert told.code == 1
    assert told.outcomes == {
        "ok": [*GROUPS["first"], "node04", "node05", "node06"],
        "failed": ["broken"],
        "untouched": [*GROUPS["third"], *GROUPS["last"]],
    }
    named = ", ".join([*GROUPS["third"], *GROUPS["last"]])
    assert f"moehost: not touched, since 1 failed: {named}\n" in told.talk
    assert sessions("node07") == before
    assert sessions("node04") > 0


def test_a_killed_run_is_finished_by_the_next(inventory: Path) -> None:
    names = ["node01", "node02", "node03", "node04"]
    limits = [word for name in names for word in ("--limit", name)]
    for name in names:
        run(name, "rm -r /opt/moehost /etc/sysusers.d/moehost.conf /etc/tmpfiles.d/moehost.conf")
    process = start(inventory, "deploy", "--yes", "--serial", "2", *limits)
    # In the middle of the first batch.
    assert process.stderr is not None
    while "Base" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not deploys(inventory))
    told = deploy(inventory, "--serial", "2", *limits)
    assert (told.code, told.outcomes) == (0, {"ok": names}), told.talk
    assert {"node03", "node04"} <= set(told.changed())
    assert deploy(inventory, *limits).changed() == []


def deploys(inventory: Path) -> list[str]:
    """Processes that deploy this inventory."""
    words = ["pgrep", "--full", "--list-full", f"pyinfra {inventory}"]
    return subprocess.run(words, capture_output=True, text=True).stdout.splitlines()


def test_a_service_that_hangs_does_not_pass_the_gate(inventory: Path) -> None:
    unit = "llama-server-tiny.service"
    run("epyc", f"systemctl kill --signal STOP {unit}")
    told = deploy(inventory, "--limit", "epyc", "--limit", "node01", "--serial", "1")
    says = f"{unit} is active and does not answer (HTTP status 000)"
    assert told.outcomes == {"failed": ["epyc"], "untouched": ["node01"]}
    assert told.reason("epyc") == f"gate: {says}"
    assert told.nodes["epyc"]["services"]["tiny"] == {"state": "failed", "says": says}
    run("epyc", f"systemctl kill --signal CONT {unit}")
    assert deploy(inventory, "--limit", "epyc").code == 0


def test_status_shows_it_all(inventory: Path) -> None:
    told = moehost(inventory, "status")
    figure(f"status of all: {told.wall_s:.0f} s")
    assert told.code == 1
    assert told.outcomes == {"ok": [name for name in NODES if name not in ABSENT], "failed": list(ABSENT)}
    assert {told.nodes[name]["failed"]["step"] for name in ABSENT} == {"ask"}
    assert told.nodes["epyc"]["services"]["tiny"]["state"] == "ready"
    assert told.nodes["node01"]["services"] == {}
    assert told.nodes["node01"]["reboot"] == []
    assert told.wall_s < 60
    table = subprocess.run(["moehost", "status", str(inventory)], cwd=ROOT, capture_output=True, text=True).stdout
    rows = table.splitlines()
    assert [row.split()[0] for row in rows[1 : 1 + len(NODES)]] == [
        *(name for name in NODES if name not in ABSENT),
        *ABSENT,
    ]
    assert rows[-1].startswith("dropped: ask: Could not connect (")


def test_what_was_mended_comes_out_right(inventory: Path) -> None:
    run("broken", MENDED)
    told = deploy(inventory, "--limit", "broken")
    assert (told.code, told.outcomes) == (0, {"ok": ["broken"]}), told.talk
    assert deploy(inventory, "--limit", "broken").changed() == []
