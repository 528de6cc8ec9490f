"""What `moehost tune` refuses before anything is touched, and where it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moehost import cli_tune, terminal
from tests.unit.shared import rpc


def service(name: str, **more: Any) -> dict[str, Any]:
    port = 8080 + len(name)
    return {"name": name, "port": port, "model": {"name": "m", "source": "file:///m.gguf"}, **more}


HOSTS = {
    "one": {"services": [service("a")]},
    "two": {"services": [service("a"), service("bb")]},
    "none": {},
    "wrong": {"services": 7},
    "boxed": {"engine": {"image": {}}, "services": [service("a", runtime="container")]},
    "shared": {"engine": {"rpc": True}, "services": [service("a", placement="rpc", rpc=rpc("one"))]},
}


@pytest.fixture(autouse=True)
def inventory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(terminal, "hosts", lambda inventory: HOSTS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["one"], "one: write the host as @one"),
        (["@three"], "@three: is no host of inventory; it has one, two, none, wrong, boxed, shared"),
        (["@none"], "@none: has no service; write one into the inventory, see docs/settings.md"),
        (["@two"], "--service: @two has a, bb; name one of them"),
        (["@two", "--service", "c"], "--service: @two has no 'c'; it has a, bb"),
        (["@boxed"], "--service: a runs in a container, and only native services can be tuned"),
        (["@shared"], "--service: a has layers on other nodes"),
        (["@one", "--only", "threads,ub"], "--only: 'ub' is not one of placement, threads, ubatch, "),
        (["@one", "--kv-types", "q3"], "--kv-types: 'q3' is not one of f16, bf16, q8_0"),
        (["@wrong"], "@wrong: services: "),
    ],
    ids=str,
)
def test_bad_input_is_one_line(arguments: list[str], line: str) -> None:
    done = CliRunner().invoke(cli_tune.tune, arguments)
    assert done.exit_code == terminal.BAD_INPUT
    assert done.stderr.startswith(f"moehost: {line}")
    assert done.stderr.count("\n") == 1


def test_what_the_node_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pyinfra(*arguments: str) -> None:
        found = Path("results/one/look/found.json")
        found.write_text(json.dumps({"refusal": "the engine 0.7 has no llama-bench; build it anew"}))

    monkeypatch.setattr(cli_tune, "pyinfra", pyinfra)
    done = CliRunner().invoke(cli_tune.tune, ["@one"])
    assert done.exit_code == terminal.FAILED
    assert done.stderr == "moehost: @one: the engine 0.7 has no llama-bench; build it anew\n"


class TestWhereItGoesOn:
    @staticmethod
    def folder(base: Path, name: str, key: str, is_done: bool = False) -> Path:
        made = base / name
        made.mkdir()
        (made / "key.json").write_text(json.dumps(key))
        if is_done:
            (made / "result.json").write_text("{}")
        return made

    def test_in_the_newest_that_was_cut_off(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "tune-1", "k")
        newest = self.folder(tmp_path, "tune-2", "k")
        self.folder(tmp_path, "tune-3", "k", is_done=True)
        self.folder(tmp_path, "tune-4", "another")
        assert cli_tune._kept(None, tmp_path, "k") == newest
        assert cli_tune._kept(None, tmp_path, "new") is None

    def test_not_in_one_of_another_search(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli_tune._kept(self.folder(tmp_path, "x", "other"), tmp_path, "k")
        assert "is of another engine, model, machine, setting or seed" in capsys.readouterr().err
