"""`moehost report` as an owner calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moehost import runs
from moehost.cli import main
from tests.fixtures.benchmark import simulated


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def kept(folder: Path, session: runs.Session) -> Path:
    folder.mkdir()
    (folder / runs.FILE).write_text("".join(runs.lines(session)))
    return folder


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return kept(tmp_path / "before", simulated(1))


class TestCompare:
    def test_for_people(self, before: Path, tmp_path: Path) -> None:
        result = call("compare", before, kept(tmp_path / "after", simulated(2, speed=0.8)))
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[1].split()[0] == "prompt" and lines[1].endswith("slower")
        assert 0.7 < float(lines[1].split()[1]) < 0.9
        assert lines[2].split()[:2] == ["550", "tokens"]
        assert len(lines) == 1 + 2 * 8 + 1
        assert lines[-1] == "slower (4 blocks before, 4 after, tolerance 3%)"

    def test_for_programs(self, before: Path, tmp_path: Path) -> None:
        after = kept(tmp_path / "after", simulated(2))
        result = call("compare", before / "runs.jsonl", after, "--json", "--tolerance", "0.5")
        found = json.loads(result.stdout)
        assert result.exit_code == 0
        assert found["verdict"] == found["prompt"]["verdict"] == "not distinguishable"
        assert found["tolerance"] == 0.5
        low, high = found["decode"]["interval"]
        assert low < found["decode"]["ratio"] < high

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (("before", "nowhere"), "nowhere: there is no such file; give a folder that `moehost bench` has made"),
            (("before", "empty"), "runs.jsonl: there is no such file"),
            (("before", "broken.jsonl"), "broken.jsonl: holds no runs of a benchmark"),
            (("before", "binary"), "binary: is no text"),
            (("before", "short"), "answers had 512 tokens before and 64 after"),
            (("before", "before", "--tolerance", "3"), "tolerance 3.0: is relative"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, before: Path, tmp_path: Path, arguments: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken.jsonl").write_text("{}\n")
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        kept(tmp_path / "short", simulated(2, answer_tokens=64))
        monkeypatch.chdir(tmp_path)
        result = call("compare", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert line in result.stderr and result.stderr.count("\n") == 1


class TestRender:
    @pytest.fixture(autouse=True)
    def without_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They take a second, and have tests of their own."""
        monkeypatch.setattr("moehost.plots.draw", lambda summary: {})

    def test_the_needs_of_before_are_kept(self, before: Path) -> None:
        result = call("render", before)
        assert (result.exit_code, result.stdout) == (0, f"{before}/report.html\n")
        summary = before / "summary.json"
        data = json.loads(summary.read_text())
        data["daily_use"]["needs"]["decode_tok_s"] = 99.0
        summary.write_text(json.dumps(data))
        assert call("render", before).stderr == ""
        assert json.loads(summary.read_text())["daily_use"]["verdict"] == "too slow"

    def test_a_summary_that_says_nothing(self, before: Path) -> None:
        (before / "summary.json").write_text("{}")
        result = call("render", before)
        assert result.exit_code == 0
        assert "says nothing of needs; the usual ones are taken" in result.stderr

    def test_a_folder_without_runs(self, tmp_path: Path) -> None:
        result = call("render", tmp_path)
        assert result.exit_code == 2
        assert "runs.jsonl: there is no such file" in result.stderr


@pytest.mark.parametrize("command", ["compare", "render"])
def test_help_has_an_example(command: str) -> None:
    assert "Example:" in call(command, "--help").stdout
