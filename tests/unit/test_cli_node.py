"""`moehost node` as an owner calls it, as far as it goes without a machine: one line for each refusal."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moehost import nodes
from moehost.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An inventory with a machine that its owner wrote, and the line that reads what is added."""
    (tmp_path / "hosts.py").write_text(f'mine = [("old", {{"ssh_user": "root"}})]\n{nodes.READS_THEM}\n')
    return tmp_path


def add(folder: Path, name: str, port: int) -> Result:
    where = ["--address", "127.0.0.1", "--port", str(port), "--inventory", str(folder)]
    return CliRunner().invoke(main, ["node", "add", name, *where])


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("new", 1, "can't be reached (Connection refused)"),
        ("old", 2, "hosts.py; edit it there, or take another name"),
        ("New", 2, "use lower-case letters"),
    ],
)
def test_refusals(folder: Path, name: str, code: int, line: str) -> None:
    run = add(folder, name, closed_port())
    assert (run.exit_code, len(run.stderr.splitlines())) == (code, 1)
    assert line in run.stderr
    assert not (folder / "nodes").exists()


def test_an_inventory_that_does_not_read_what_is_added_is_told_the_line(folder: Path) -> None:
    (folder / "hosts.py").write_text("mine = []\n")
    assert nodes.READS_THEM in add(folder, "new", closed_port()).stderr


def test_a_machine_that_was_not_added_is_not_removed(folder: Path) -> None:
    run = CliRunner().invoke(main, ["node", "remove", "old", "--inventory", str(folder)])
    assert run.exit_code == 2 and "yours to edit" in run.stderr
