"""Facts over one session of SSH: each command as if it had one of its own, and nothing of the one before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from pyinfra.connectors.sshuserclient import SSHClient

from roles.one_session import UNKNOWN, Session
from tests.fixtures.ssh_server import host_data, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def commands() -> list[str]:
    """What the server was asked to run."""
    return []


@pytest.fixture
def port(commands: list[str]) -> Iterator[int]:
    with serving(commands) as found:
        yield found


@pytest.fixture
def client(port: int) -> Iterator[SSHClient]:
    with SSHClient() as found:
        found.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        key = paramiko.RSAKey.generate(2048)
        # Not pyinfra's own, which reads the files of whoever runs this.
        paramiko.SSHClient.connect(
            found, "127.0.0.1", port, "root", pkey=key, allow_agent=False, look_for_keys=False, timeout=20
        )
        yield found


@pytest.fixture
def session(client: SSHClient) -> Session:
    return Session(client)


def asked(session: Session, command: str) -> tuple[list[str], list[str], int]:
    """Output, errors and status of a command."""
    given, output, errors = session.ask(command)
    given.close()
    found = list(output), list(errors)
    return *found, output.channel.recv_exit_status()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("echo one; echo two >&2; exit 3", (["one\n"], ["two\n"], 3)),
        ("printf 'no end'; printf also >&2", (["no end"], ["also"], 0)),
        ("printf '\\n\\n a \\n'", (["\n", "\n", " a \n"], [], 0)),
        ("true", ([], [], 0)),
        ("cat", ([], [], 0)),
        ("echo \"it's\" '$HOME'", (["it's $HOME\n"], [], 0)),
        ("cat <<'E'\n$HOME\nE", (["$HOME\n"], [], 0)),
        ("echo für", (["für\n"], [], 0)),
    ],
)
def test_a_command_is_as_in_a_session_of_its_own(session: Session, command: str, answer: object) -> None:
    assert asked(session, "cd /; export A=1; umask 0") == ([], [], 0)
    assert asked(session, command) == answer
    assert session.is_at_rest
    assert asked(session, "echo $A") == (["\n"], [], 0)


def test_what_is_no_command_ends_nothing(session: Session) -> None:
    output, errors, status = asked(session, "echo 'never ended")
    assert (output, status) == ([], 2) and "nterminated" in errors[-1]
    assert asked(session, "echo on") == (["on\n"], [], 0)


def test_much_on_both_sides(session: Session) -> None:
    output, errors, status = asked(session, "seq 200000; seq 200000 >&2")
    assert (len(output), len(errors), output[-1], status) == (200000, 200000, "200000\n", 0)
    text = "x" * 100000
    assert asked(session, f"echo {text}") == ([f"{text}\n"], [], 0)


def test_its_mark_is_in_no_argument_and_no_environment(session: Session) -> None:
    output, _, _ = asked(session, "cat /proc/$PPID/cmdline /proc/$PPID/environ /proc/$$/environ | tr '\\0' '\\n'")
    assert any("sh" in line for line in output)
    assert session._mark not in "".join(output)


def test_a_session_that_breaks_has_no_status_and_is_not_asked_again(session: Session) -> None:
    output, _, status = asked(session, "echo begun; kill -9 $PPID")
    assert (output, status) == (["begun\n"], UNKNOWN)
    assert not session.is_at_rest


def test_one_with_an_answer_that_nobody_read_is_not_at_rest(session: Session) -> None:
    _, output, errors = session.ask("echo one; echo two")
    assert not session.is_at_rest
    assert next(iter(output)) == "one\n"
    assert not session.is_at_rest
    assert (list(output), list(errors)) == (["two\n"], [])
    assert session.is_at_rest


DEPLOY = """
from pyinfra import host
from pyinfra.api import FactBase
from pyinfra.operations import python, server


class Said(FactBase):
    def command(self, text):
        return f"echo {text}"

    def process(self, output):
        return output


class Slow(Said):
    def command(self):
        return "sleep 2; echo late"


class Ended(Said):
    def command(self):
        return "kill -9 $(ps -o ppid= -p $PPID)"


def ask():
    print("SAID", host.get_fact(Said, text="one"), host.get_fact(Said, text="two"))
    print("SLOW", host.get_fact(Slow, _timeout=1, _ignore_errors=True), host.get_fact(Said, text="three"))
    print("ENDED", host.get_fact(Ended, _ignore_errors=True), host.get_fact(Said, text="four"))


server.shell(name="Before", commands=["true"])
python.call(name="Ask", function=ask)
server.shell(name="After", commands=["true"])
python.call(name="Ask again", function=lambda: print("SAID", host.get_fact(Said, text="five")))
"""


def test_facts_share_a_session_until_another_command_comes(port: int, commands: list[str], tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text(f"nodes = [('node', {host_data(tmp_path, port)!r})]\n")
    (tmp_path / "deploy.py").write_text(DEPLOY)
    program = Path(sys.executable).with_name("pyinfra")
    words = [program, tmp_path / "hosts.py", tmp_path / "deploy.py", "--yes", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("SAID", "SLOW", "ENDED"))]
    assert said == ["SAID ['one'] ['two']", "SLOW None ['three']", "ENDED None ['four']", "SAID ['five']"]
    ordinary, shell = "sh -c true", "exec sh"
    # One with an answer that came too late, and one that is broken, are each followed by another.
    assert commands == [ordinary, shell, shell, shell, ordinary, shell]
    counted = json.loads(done.stdout[done.stdout.index("{") :])["hosts"]["node"]["commands"]
    assert counted == 9
