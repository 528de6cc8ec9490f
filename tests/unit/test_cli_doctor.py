"""`moehost doctor` as an owner calls it: the contract, exit codes, hosts that don't answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost.cli import main
from tests.fixtures.condition import answer

TINY = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}
# Nothing listens there.
GONE = ("127.0.0.1", {"ssh_port": 1, "ssh_user": "root"})


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
    monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")


def fake(host: str, settings: dict[str, Any] | None = None, **texts: str) -> tuple[str, dict[str, Any]]:
    """A host that answers as the healthy node does, with other texts by their keys."""
    said = "".join(f"=== {key}\n{text}" for key, text in answer(**texts).items())
    responses = {"=== machine.lscpu": said.splitlines()}
    return f"@fake/{host}", {"services": [TINY], **(settings or {}), "fake_responses": responses}


def doctor(folder: Path, hosts: list[tuple[str, dict[str, Any]]], *arguments: str) -> Result:
    inventory = folder / "hosts.py"
    inventory.write_text(f"nodes = {hosts!r}\n")
    if arguments and arguments[0].startswith("@"):
        arguments = (*arguments, "--inventory", str(inventory))
    else:
        arguments = (str(inventory), *arguments)
    return CliRunner().invoke(main, ["doctor", *arguments])


@pytest.fixture(scope="module")
def hosts() -> list[tuple[str, dict[str, Any]]]:
    """Hosts of every kind; one can't be reached, one says nothing, one has wrong settings."""
    ill = fake("ill", governors="powersave\n", units="")
    return [
        GONE,
        fake("well"),
        fake("slow", governors="powersave\n"),
        ill,
        ("@fake/mute", {}),
        fake("wrong", {"a": 1}),
    ]


def test_text_for_people(tmp_path: Path, hosts: list[tuple[str, dict[str, Any]]]) -> None:
    result = doctor(tmp_path, hosts)
    assert (result.exit_code, result.stderr) == (1, "")
    of_hosts = re.split(r"^(?=\S)", result.stdout, flags=re.MULTILINE)[1:]
    assert [part.splitlines()[0] for part in of_hosts] == [
        "127.0.0.1: 1 error",
        "@fake/well: no errors, no warnings",
        "@fake/slow: 1 warning",
        "@fake/ill: 1 error, 1 warning",
        "@fake/mute: 1 error",
        "@fake/wrong: 1 error",
    ]
    (fine,) = of_hosts[1].splitlines()[1:]
    assert re.fullmatch(r"  \d+ areas are fine: system, reboot, disk, .*cards", fine)
    assert of_hosts[2].splitlines()[1:3] == [
        "  warning  governor: the frequency governor is powersave on 1 of 1 CPUs; decode waits for the clock",
        "           fix: pyinfra inventory deploy.py",
    ]
    assert "governor" not in of_hosts[2].splitlines()[3]
    # Errors come first.
    assert [line[:17] for line in of_hosts[3].splitlines()[1::2]][:2] == ["  error    servic", "  warning  govern"]


def test_the_contract(tmp_path: Path, hosts: list[tuple[str, dict[str, Any]]]) -> None:
    result = doctor(tmp_path, hosts, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert {host: each["worst"] for host, each in found.items()} == {
        "127.0.0.1": "error",
        "@fake/well": "ok",
        "@fake/slow": "warning",
        "@fake/ill": "error",
        "@fake/mute": "error",
        "@fake/wrong": "error",
    }
    for each in found.values():
        assert set(each) == {"findings", "worst"}
        assert all(set(finding) == {"area", "level", "says", "fix"} for finding in each["findings"])
    (gone,), (mute,), (wrong,) = (found[host]["findings"] for host in ("127.0.0.1", "@fake/mute", "@fake/wrong"))
    assert gone["area"] == mute["area"] == "connection"
    assert gone["says"].startswith("can't be asked: Could not connect (")
    assert gone["fix"].endswith("hosts.py --limit 127.0.0.1 exec -- true")
    assert (wrong["area"], wrong["says"][:19]) == ("settings", "a: unknown setting;")


def test_one_host_of_several(tmp_path: Path, hosts: list[tuple[str, dict[str, Any]]]) -> None:
    result = doctor(tmp_path, hosts, "@fake/slow", "--verbose")
    assert result.exit_code == 0
    head, warning, _, *fine = result.stdout.splitlines()
    assert (head, warning[:11]) == ("@fake/slow: 1 warning", "  warning  ")
    assert len(fine) > 10
    assert all(line.startswith("  ok ") for line in fine)


def test_no_host_can_be_asked(tmp_path: Path) -> None:
    result = doctor(tmp_path, [GONE])
    assert result.exit_code == 1
    assert "127.0.0.1: 1 error\n  error    connection: can't be asked: Could not connect (" in result.stdout


@pytest.mark.parametrize(
    ("hosts", "arguments", "line"),
    [
        ([fake("well")], ["@nobody"], "@nobody: is no host of "),
        ([], [], "hosts.py: names no host"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, hosts: list[tuple[str, dict[str, Any]]], arguments: list[str], line: str
) -> None:
    result = doctor(tmp_path, hosts, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_inventory_that_is_not_there() -> None:
    result = CliRunner().invoke(main, ["doctor", "/nonexistent"])
    assert (result.exit_code, result.stderr) == (2, "moehost: /nonexistent: there is no such file\n")


def test_help_has_an_example() -> None:
    assert "Example:" in CliRunner().invoke(main, ["doctor", "--help"]).stdout
