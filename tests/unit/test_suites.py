"""Suites side by side: all of them run, and whoever reads only the end knows what failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.node import ROOT

MAKEFILE = """
.PHONY: fine other broken slow shy
fine:
\t@sleep 0.3; echo fine; touch fine.done
other:
\t@test ! -e fine.done
broken:
\t@printf 'a\\n\\033[31mE   assert 1 == 2\\033[0m\\nFAILED tests/test_a.py::test_b - assert 1 == 2\\nmore\\n'; exit 1
shy:
\t@test -e tried && echo well || { touch tried; echo 'E   not in company'; exit 1; }
slow:
\t@trap 'echo cleaned >cleaned; exit 130' INT; sleep 60
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own with the script in it."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/suites.py").write_text((ROOT / "scripts/suites.py").read_text())
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def start(project: Path, *words: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = [sys.executable, str(project / "scripts/suites.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_all_of_them_pass_side_by_side(project: Path) -> None:
    process = start(project, "--at-once", "2", "fine", "other")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    # One after the other, the second would have found what the first one left.
    assert "other: passed" in said
    assert (project / ".sandbox/logs/fine.log").read_text() == "fine\n"


def test_a_failure_stops_none_of_the_others_and_is_told_in_the_end(project: Path) -> None:
    process = start(project, "broken", "fine", "--alone", "other")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert (project / "fine.done").exists()
    summary = said.partition("== suites:\n")[2]
    assert "broken: FAILED" in summary
    # It is alone: after the one that leaves a file.
    assert "other: FAILED" in summary
    why = summary.partition("== why broken failed:\n")[2].splitlines()
    assert why[:2] == ["   E   assert 1 == 2", "   FAILED tests/test_a.py::test_b - assert 1 == 2"]


def test_one_that_fails_in_company_is_run_again_by_itself_and_that_counts(project: Path) -> None:
    process = start(project, "--at-once", "2", "shy", "broken")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    summary = said.partition("== suites:\n")[2]
    assert "shy: FAILED" in summary and "shy, once more and alone: passed" in summary
    assert "broken: FAILED" in summary and "broken, once more and alone: FAILED" in summary
    # What it was is told all the same.
    assert "   E   not in company" in summary.partition("== why shy failed:\n")[2]
    assert (project / ".sandbox/logs/shy-alone.log").read_text() == "well\n"
    assert start(project, "--at-once", "2", "shy").wait(timeout=30) == 0


def test_one_that_is_interrupted_lets_its_suites_clean_up(project: Path) -> None:
    process = start(project, "slow", "fine")
    assert process.stdout
    assert process.stdout.readline() == "   slow begins\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert (project / "cleaned").exists()
    assert "fine: not run to its end" in said
    assert not (project / "fine.done").exists()


@pytest.mark.parametrize("words", [(), ("--at-once", "0", "fine")])
def test_bad_input(project: Path, words: tuple[str, ...]) -> None:
    process = start(project, *words)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "name targets, and at least one at once" in said
