"""`moehost deploy` and `moehost status` as an owner calls them, over nodes of pyinfra's fake connector.

A small deploy takes the place of the real one; processes, pipes, steps and tables are the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost import cli_fleet, deploying, results
from moehost.cli import main
from moehost.rolling import RouterError
from moehost.runs import Run, Session, lines
from tests.fixtures.fleet import fake

ROOT = Path(__file__).parents[2]
DEPLOY = """\
from pyinfra.api import deploy
from pyinfra.operations import server


@deploy("One")
def one():
    server.shell(name="Prepare", commands=["prepare"])


@deploy("Two")
def two():
    server.shell(name="Open", commands=["boom"])


one()
two()
"""
BAD = {"fake_responses": {"boom": {"success": False, "stderr": "trying\nno space left"}}}
# Nothing listens there.
GONE = ("127.0.0.1", {"ssh_port": 1, "ssh_user": "root"})
REFUSED = "Could not connect ([Errno None] Unable to connect to port 1 on 127.0.0.1)"


class Recorder:
    """A router that remembers what it was told, and fails where a test wants it to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self.broken: set[str] = set()
        self.away: set[str] = set()

    def drain(self, nodes: Sequence[str]) -> None:
        self._hear("drain", nodes)
        self.away.update(nodes)

    def ready(self, nodes: Sequence[str]) -> None:
        self._hear("ready", nodes)
        self.away.difference_update(nodes)

    def drained(self) -> Collection[str]:
        return self.away

    def _hear(self, what: str, nodes: Sequence[str]) -> None:
        if what in self.broken:
            raise RouterError("the router does not answer")
        self.told.append((what, tuple(nodes)))


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(cli_fleet, "router_of", lambda nodes: recorder)
    return recorder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
    monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")
    (tmp_path / "deploy.py").write_text(DEPLOY)
    monkeypatch.setattr(deploying, "DEPLOY", str(tmp_path / "deploy.py"))
    monkeypatch.setattr(results, "ROOT", tmp_path / "results")
    monkeypatch.setattr(cli_fleet, "LOCKS", tmp_path / "locks")
    monkeypatch.chdir(ROOT)


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Result]:
    """Calls a command with an inventory of these hosts."""

    def run(command: str, hosts: list[Any], *arguments: str) -> Result:
        path = tmp_path / "hosts.py"
        path.write_text(f"nodes = {hosts!r}\nfirst = {[hosts[0][0]]!r}\n")
        return CliRunner().invoke(main, [command, str(path), *arguments])

    return run


def summary(result: Result) -> dict[str, Any]:
    """Outcome and reason of each node."""
    nodes = json.loads(result.stdout)["nodes"]
    return {name: (each["outcome"], each["failed"] and each["failed"]["reason"]) for name, each in nodes.items()}


def test_one_nodes_failure_hides_no_other(call, router: Recorder) -> None:
    hosts = [fake("good"), fake("bad", BAD), fake("mute", answers=""), GONE]
    result = call("deploy", hosts, "--yes", "--json")
    assert result.exit_code == 1
    unit = "llama-server-tiny.service"
    assert summary(result) == {
        "@fake/good": ("ok", None),
        "@fake/bad": ("failed", "Two | Open: no space left"),
        "@fake/mute": ("failed", f"{unit} is active and does not answer (HTTP status none)"),
        "127.0.0.1": ("failed", REFUSED),
    }
    nodes = json.loads(result.stdout)["nodes"]
    assert [each["failed"] and each["failed"]["step"] for each in nodes.values()] == [
        None,
        "deploy",
        "gate",
        "deploy",
    ]
    # The one that failed in its deploy was asked how it is, too; the one that can't be reached was not.
    assert [each["services"] and each["services"]["tiny"]["state"] for each in nodes.values()] == [
        "ready",
        "drained",
        "failed",
        None,
    ]
    # Only who has passed the gate gets requests again.
    assert router.told == [
        ("drain", ("@fake/good", "@fake/bad", "@fake/mute", "127.0.0.1")),
        ("ready", ("@fake/good",)),
    ]
    assert router.away == {"@fake/bad", "@fake/mute", "127.0.0.1"}
    assert "moehost: @fake/good: One 0.0 s, 1 changed\n" in result.stderr
    assert result.stderr.count("no space left") == 2  # the role's line and the step's


def test_the_logs_are_kept(call, tmp_path: Path) -> None:
    result = call("deploy", [fake("good")], "--yes", "--json")
    assert result.exit_code == 0, result.output
    logs = Path(json.loads(result.stdout)["logs"])
    assert logs.parent == tmp_path / "results/deploys"
    assert "Starting operation: Two | Open" in (logs / "fake_good.log").read_text()
    assert json.loads((logs / "deploy.json").read_text())["@fake/good"]["outcome"] == "ok"


def test_the_next_batch_does_not_begin_after_a_failure(call, router: Recorder) -> None:
    hosts = [fake("a"), fake("b", BAD), fake("c"), fake("d")]
    result = call("deploy", hosts, "--yes", "--json", "--serial", "50%")
    assert result.exit_code == 1
    assert [outcome for outcome, _ in summary(result).values()] == ["ok", "failed", "untouched", "untouched"]
    assert json.loads(result.stdout)["untouched"] == ["@fake/c", "@fake/d"]
    assert "moehost: not touched, since 1 failed: @fake/c, @fake/d\n" in result.stderr
    assert router.told == [("drain", ("@fake/a", "@fake/b")), ("ready", ("@fake/a",))]
    # The next run, its fault mended, puts everything right.
    result = call("deploy", [fake(each) for each in "abcd"], "--yes", "--serial", "50%")
    assert (result.exit_code, router.away) == (0, set())


def test_failures_that_are_borne(call) -> None:
    hosts = [fake("a", BAD), fake("b"), fake("c", BAD), fake("d")]
    result = call("deploy", hosts, "--yes", "--json", "--serial", "1", "--max-failures", "2")
    assert [outcome for outcome, _ in summary(result).values()] == ["failed", "ok", "failed", "untouched"]


def test_limits(call) -> None:
    hosts = [fake("a"), fake("b"), fake("c")]
    assert list(summary(call("deploy", hosts, "--yes", "--json", "--limit", "first"))) == ["@fake/a"]
    result = call("deploy", hosts, "--yes", "--json", "--limit", "@fake/c", "--limit", "*/b")
    assert list(summary(result)) == ["@fake/b", "@fake/c"]


@pytest.mark.parametrize("what", ["drain", "ready"])
def test_a_router_that_does_not_do_as_it_is_told(call, router: Recorder, what: str) -> None:
    router.broken = {what}
    result = call("deploy", [fake("a"), fake("b")], "--yes", "--json", "--serial", "1")
    assert result.exit_code == 1
    assert summary(result) == {"@fake/a": ("failed", "the router does not answer"), "@fake/b": ("untouched", None)}
    nodes = json.loads(result.stdout)["nodes"]
    # What can't be drained is not deployed.
    assert (nodes["@fake/a"]["roles"] is None) == (what == "drain")


def test_what_nobody_has_thought_of_ends_one_nodes_way_only(call, router: Recorder, monkeypatch) -> None:
    def odd(nodes: Sequence[str]) -> None:
        if nodes == ("@fake/a",):
            raise KeyError("socket")

    monkeypatch.setattr(router, "ready", odd)
    result = call("deploy", [fake("a"), fake("b")], "--yes", "--json")
    assert summary(result) == {"@fake/a": ("failed", "KeyError: 'socket'"), "@fake/b": ("ok", None)}


def test_a_dry_run_only_says_what_would_change(call, router: Recorder) -> None:
    result = call("deploy", [fake("a"), GONE], "--dry", "--json")
    assert summary(result) == {"@fake/a": ("ok", None), "127.0.0.1": ("failed", REFUSED)}
    assert [each["changed"] for each in json.loads(result.stdout)["nodes"]["@fake/a"]["roles"]] == [
        ["Prepare"],
        ["Open"],
    ]
    assert router.told == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--limit", "nowhere"],
            "--limit: 'nowhere' names no host; there are groups nodes, first, hosts, @fake; hosts @fake/a",
        ),
        (
            ["--serial", "0"],
            "--serial: '0' is no size of a batch; write a number of nodes, 4, or a part of them, 25%",
        ),
        ([], "nobody can be asked here; --yes deploys, --dry only says what would change"),
    ],
)
def test_bad_input_is_one_line(call, arguments: list[str], line: str) -> None:
    result = call("deploy", [fake("a")], *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"moehost: {line}")


def test_a_host_with_the_name_of_a_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text("one = ['one']\ntwo = ['one', 'two']\n")
    result = CliRunner().invoke(main, ["deploy", str(tmp_path / "hosts.py"), "--yes"])
    assert (result.exit_code, result.stdout) == (2, "")
    says = "moehost: two: is the name of a host and of a group that has others; rename one of them"
    assert result.stderr.splitlines() == [says]


def test_wrong_settings_are_named_before_anything_is_touched(call, router: Recorder) -> None:
    result = call("deploy", [fake("a"), fake("b", {"prot": 1})], "--yes")
    assert (result.exit_code, result.stdout, router.told) == (2, "", [])
    assert result.stderr.startswith("moehost: @fake/b: prot: unknown setting; ")


def test_the_table_for_people(call) -> None:
    result = call("deploy", [fake("bad", BAD), fake("good", reboot="1794600000 linux-image\n")], "--yes")
    heading, good, bad, reason = (line.split() for line in result.stdout.splitlines())
    assert " ".join(heading) == "node outcome roles changed services decode tok/s reboot drift duration"
    assert good[:6] == ["@fake/good", "ok", "One,", "Two", "tiny:", "ready"]
    assert good[6:9] == ["-", "needed", "-"]
    assert bad[:3] == ["@fake/bad", "failed", "One"]
    assert reason == ["@fake/bad:", "deploy:", "Two", "|", "Open:", "no", "space", "left"]


def test_status_shows_what_is_known(call, router: Recorder, tmp_path: Path) -> None:
    router.away = {"@fake/b"}
    run = Run("measured", 0, 64, 16, time.time() - 3 * 3600, predicted_n=17, decode_s=2.0, prompt_s=1.0)
    folder = tmp_path / "results/fake_a/tiny/2026-01-01T00-00-00Z"
    folder.mkdir(parents=True)
    (folder / "runs.jsonl").write_text("".join(lines(Session({}, runs=(run,)))))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/fake_a.json").write_text('{"system": {"kernel": "6.1"}}')
    hosts = [fake("a"), fake("b"), fake("mute", answers=""), fake("wrong", {"prot": 1}), GONE]
    result = call("status", hosts, "--json")
    assert result.exit_code == 1
    nodes = json.loads(result.stdout)["nodes"]
    assert {name: each["failed"] and each["failed"]["step"] for name, each in nodes.items()} == {
        "@fake/a": None,
        "@fake/b": None,
        "@fake/mute": "gate",
        "@fake/wrong": "settings",
        "127.0.0.1": "ask",
    }
    assert nodes["127.0.0.1"]["failed"]["reason"] == REFUSED
    assert nodes["@fake/a"]["bench"]["tiny"]["tok_s"] == 8.0
    assert nodes["@fake/a"]["drift"] == ["system kernel: 6.1 -> absent"]
    assert nodes["@fake/b"]["services"]["tiny"] == {"state": "drained", "says": None}
    table = call("status", hosts).stdout.splitlines()
    assert table[1].split() == [
        "@fake/a",
        "ok",
        "tiny:",
        "ready",
        "tiny:",
        "8.0,",
        "3",
        "hours",
        "ago",
        "no",
        "1",
        "things",
    ]
    assert table[-1] == f"127.0.0.1: ask: {REFUSED}"


def test_status_of_a_host(call, tmp_path: Path) -> None:
    call("status", [fake("a"), fake("b")])
    result = CliRunner().invoke(main, ["status", "@fake/b", "--inventory", str(tmp_path / "hosts.py"), "--json"])
    assert (result.exit_code, list(json.loads(result.stdout)["nodes"])) == (0, ["@fake/b"])


PROGRAM = """\
import sys
from moehost import deploying, results
from moehost.cli import main
deploying.DEPLOY, results.ROOT = sys.argv[1], __import__("pathlib").Path(sys.argv[2])
main(sys.argv[3:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_deploy_that_is_killed_leaves_no_deploy_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "hosts.py").write_text(f"nodes = {[fake('a'), fake('b'), fake('c')]!r}\n")
    # Three seconds for each command: it is in the middle of its first one.
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "deploy.py"), str(tmp_path / "results")]
    process = subprocess.Popen(
        [*words, "deploy", str(tmp_path / "hosts.py"), "--yes", "--json", "--serial", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYINFRA_FAKE_DELAY": "3"},
    )
    deadline_s = time.monotonic() + 60
    while "Starting operation" not in "".join(
        path.read_text() for path in tmp_path.glob("results/deploys/*/fake_b.log")
    ):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    while running := _deploys_of(tmp_path):
        assert time.monotonic() < deadline_s, running
        time.sleep(0.2)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        return
    assert process.returncode == 1
    assert "moehost: interrupted: ending what is under way; the next deploy goes on" in stderr
    nodes = json.loads(stdout)["nodes"]
    assert {name: each["failed"] and each["failed"]["reason"] for name, each in nodes.items()} == {
        "@fake/a": "the run was interrupted",
        "@fake/b": "the run was interrupted",
        "@fake/c": None,
    }
    assert nodes["@fake/c"]["outcome"] == "untouched"


def _deploys_of(folder: Path) -> list[str]:
    """Processes of pyinfra that deploy the inventory of a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_text().split("\0")
        except OSError:
            continue
        if str(folder / "hosts.py") in words and any(word.endswith("/pyinfra") for word in words):
            found.append(each.parent.name)
    return found
