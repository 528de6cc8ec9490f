"""What `pyinfra ... --json` says of each host: roles, times, changes, and one line for a failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moehost.role_times import HostRun, Operation, last_line

ROOT = Path(__file__).parents[2]


def test_roles_have_the_sum_of_their_operations():
    run = HostRun(
        [
            Operation("Base", "Install packages", 0.25, changed=True),
            Operation("Base", "Make accounts", 0.125),
            Operation("Engine", "Build", 2.0, failed="no space left"),
        ],
        has_failed=True,
        commands=3,
    )
    assert run.to_json() == {
        "roles": [
            {"role": "Base", "duration_s": 0.375, "changed": ["Install packages"], "failed": None},
            {"role": "Engine", "duration_s": 2.0, "changed": [], "failed": "Build: no space left"},
        ],
        "failed": "Engine | Build: no space left",
        "commands": 3,
    }


def test_what_failed_without_an_operation_has_what_was_said():
    assert HostRun(said=["prot: unknown", "gpu: wrong"], has_failed=True).failure == "prot: unknown (and 1 more)"
    assert HostRun(said=["Could not connect"], has_failed=True).failure == "Could not connect"
    assert HostRun(has_failed=True).failure == "no reason given"
    # Warnings of a host that went well are no failure.
    assert HostRun(said=["not tuned"]).failure is None
    assert HostRun(unfinished="the run ended: x").failure == "the run ended: x"


def test_the_last_line_is_not_pyinfras_own():
    assert last_line(["E: broken", "Error: executed 0 commands"]) == "E: broken"
    assert last_line(["Error: executed 0 commands"]) == "no reason given"


def test_the_last_line_has_its_heading():
    said = ["dpkg: error", "Errors were encountered while processing:", " linux-image", "Error: executed 0 commands"]
    assert last_line(said) == "Errors were encountered while processing: linux-image"


DEPLOY = """\
from pyinfra import host
from pyinfra.api import deploy, operation
from pyinfra.operations import server

from roles.operations import refuse


@operation()
def looked_at():
    if host.name == "@fake/picky":
        yield refuse("this host is refused")
        return
    host.noop("fine")


@deploy("One")
def one():
    server.shell(name=f"Greet {host.name}", commands=["true"])
    looked_at(name="Look")


@deploy("Two")
def two():
    server.shell(name="Open", commands=["boom"])
    server.shell(name="Bear it", commands=["crack"], _ignore_errors=True)


one()
two()
"""
BROKEN = """\
from pyinfra import host
from pyinfra.operations import server

server.shell(name="Do", commands=["true"])
if host.name == "@fake/good":
    raise ValueError("a role is broken\\nand how")
"""
RESPONSES = {"crack": {"success": False, "stderr": "cracked"}}
HOSTS = [
    ("@fake/good", {"fake_responses": RESPONSES}),
    ("@fake/bad", {"fake_responses": {"boom": {"success": False, "stderr": "trying\nit is broken"}}}),
    ("@fake/picky", {}),
    # Nothing listens there.
    ("127.0.0.1", {"ssh_port": 1, "ssh_user": "root"}),
]


@pytest.fixture
def pyinfra(tmp_path: Path):
    """Runs pyinfra in a folder with this project's config.py: exit code, and the JSON that it prints."""
    shutil.copy(ROOT / "config.py", tmp_path)
    (tmp_path / "roles").symlink_to(ROOT / "roles")
    (tmp_path / "deploy.py").write_text(DEPLOY)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "hosts.py").write_text(f"nodes = {HOSTS!r}\n")

    def run(*arguments: str, **environment: str) -> tuple[int, Any, str]:
        program = Path(sys.executable).with_name("pyinfra")
        env = {**os.environ, "PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0", **environment}
        done = subprocess.run(
            [program, "hosts.py", *arguments], cwd=tmp_path, capture_output=True, text=True, env=env
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    return run


def test_every_run_says_it_of_every_host(pyinfra) -> None:
    code, found, _ = pyinfra("deploy.py", "--yes", "--json")
    assert code == 1
    assert set(found) == {"plan", "results", "hosts"}
    hosts = found["hosts"]
    assert {name: each["failed"] for name, each in hosts.items()} == {
        "@fake/good": None,
        "@fake/bad": "Two | Open: it is broken",
        "@fake/picky": "One | Look: this host is refused",
        "127.0.0.1": "Could not connect ([Errno None] Unable to connect to port 1 on 127.0.0.1)",
    }
    assert [
        {key: value for key, value in role.items() if key != "duration_s"} for role in hosts["@fake/good"]["roles"]
    ] == [
        {"role": "One", "changed": ["Greet @fake/good"], "failed": None},
        # An error that is borne is no change and no failure.
        {"role": "Two", "changed": ["Open"], "failed": None},
    ]
    assert [role["failed"] for role in hosts["@fake/bad"]["roles"]] == [None, "Open: it is broken"]
    assert hosts["127.0.0.1"]["roles"] == []
    assert all(role["duration_s"] >= 0 for each in hosts.values() for role in each["roles"])
    # What pyinfra says itself is as it was.
    assert found["results"]["failed_hosts"] == ["127.0.0.1", "@fake/bad", "@fake/picky"]


def test_durations_are_the_hosts_own(pyinfra) -> None:
    code, found, _ = pyinfra("deploy.py", "--yes", "--json", "--limit", "@fake/good", PYINFRA_FAKE_DELAY="0.2")
    assert code == 0
    one, two = found["hosts"]["@fake/good"]["roles"]
    assert 0.2 <= one["duration_s"] < 0.4 <= two["duration_s"]


def test_a_dry_run_says_what_would_change(pyinfra) -> None:
    code, found, _ = pyinfra("deploy.py", "--dry", "--json", "--limit", "@fake/good")
    assert (code, found["results"]) == (0, None)
    assert found["hosts"]["@fake/good"]["roles"] == [
        {"role": "One", "duration_s": None, "changed": ["Greet @fake/good"], "failed": None},
        {"role": "Two", "duration_s": None, "changed": ["Open", "Bear it"], "failed": None},
    ]


@pytest.mark.parametrize("host", ["@fake/bad", "127.0.0.1"])
def test_a_run_in_which_all_hosts_fail_prints_it_too(pyinfra, host: str) -> None:
    code, found, _ = pyinfra("deploy.py", "--yes", "--json", "--limit", host)
    assert code == 1
    assert list(found["hosts"]) == [host]
    assert found["hosts"][host]["failed"]
    assert found["results"]["failed_hosts"] == [host]


def test_a_run_that_an_error_ends_says_so_of_every_host(pyinfra) -> None:
    code, found, said = pyinfra("broken.py", "--yes", "--json", "--limit", "@fake/*")
    assert code == 1
    assert "ValueError: a role is broken" in said
    reason = "the run ended: ValueError: a role is broken"
    assert {each["failed"] for each in found["hosts"].values()} == {reason}


def test_facts_and_the_inventory_print_what_they_always_did(pyinfra) -> None:
    assert pyinfra("fact", "server.Arch", "--json", "--limit", "127.0.0.1")[:2] == (1, None)
    assert list(pyinfra("fact", "server.Arch", "--json", "--limit", "@fake/good")[1]) == ["server.Arch"]
    assert len(pyinfra("debug-inventory", "--json")[1]) == len(HOSTS)


def test_without_json_nothing_is_printed(pyinfra) -> None:
    assert pyinfra("deploy.py", "--yes", "--limit", "@fake/bad")[:2] == (1, None)
