"""`moehost models` as an owner calls it; what a node does with it is looked at by the fault drill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost.cli import main

WHOLE = {"model": "m", "source": "file:m.gguf", "revision": None, "files": 2, "bytes": 12 * 10**9, "problem": None}


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
    monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")


def models(folder: Path, *arguments: str, there: list[dict[str, Any]] | None = None, **data: Any) -> Result:
    """The command, with a host that has these models."""
    answers = {"moehost.inspection --list": json.dumps([WHOLE] if there is None else there)}
    inventory = folder / "hosts.py"
    inventory.write_text(f"nodes = [('@fake/epyc', { ({'fake_responses': answers} | data)!r})]\n")
    return CliRunner().invoke(main, ["models", *arguments, "--inventory", str(inventory)])


def test_list(tmp_path: Path) -> None:
    result = models(tmp_path, "list", "@fake/epyc")
    assert result.exit_code == 0
    assert result.stdout == "m: whole, as far as sizes tell; 2 file(s), 12.00 GB, from file:m.gguf\n"
    assert json.loads(models(tmp_path, "list", "@fake/epyc", "--json").stdout) == [WHOLE]


def test_list_of_a_damaged_model_says_what_mends_it(tmp_path: Path) -> None:
    result = models(tmp_path, "list", "@fake/epyc", there=[WHOLE | {"problem": "damaged: m-2.gguf"}])
    assert result.exit_code == 1
    assert result.stdout.startswith("m: damaged: m-2.gguf; 2 file(s)")
    assert "mend it: pyinfra inventory deploy.py" in result.stderr


@pytest.mark.parametrize(
    ("words", "there", "code", "line"),
    [
        (["verify", "@fake/nobody"], None, 2, "is no host of"),
        (["verify", "@fake/epyc", "n"], None, 2, "n: is no model of @fake/epyc; it has m"),
        (["verify", "@fake/epyc"], [], 1, "has no models, or none since this version; deploy first"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, words: list[str], there: list[dict[str, Any]] | None, code: int, line: str
) -> None:
    result = models(tmp_path, *words, there=there)
    assert (result.exit_code, result.stdout) == (code, "")
    assert line in result.stderr and result.stderr.count("\n") == 1


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    assert models(tmp_path, "list", "@fake/epyc", models_dri="/srv").exit_code == 2
