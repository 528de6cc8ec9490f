"""`moehost keys` as an owner calls it: what is refused, and that a key is shown once and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost import cli_keys
from moehost.cli import main

GATEWAY = {"host": "llm.home.arpa"}
LISTED = "alice 2026-11-29T18:00:00Z aaaaaaaaaaaa\n"


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
    monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")


def keys(folder: Path, *words: str, state: str = "active", wish: dict[str, Any] | None = GATEWAY) -> Result:
    said = f"=== state\n{state}\n=== keys\n{LISTED}=== root\n-----BEGIN\n"
    data: dict[str, Any] = {"fake_responses": {"=== state": said.splitlines()}}
    if wish:
        data["gateway"] = wish
    inventory = folder / "hosts.py"
    inventory.write_text(f"nodes = [('@fake/node', {data!r})]\n")
    return CliRunner().invoke(main, ["keys", *words, "@fake/node", "--inventory", str(inventory)])


def test_a_list(tmp_path: Path) -> None:
    assert keys(tmp_path, "list").stdout.split() == LISTED.split()
    assert json.loads(keys(tmp_path, "list", "--json").stdout) == [
        {"name": "alice", "created": "2026-11-29T18:00:00Z", "sha256": "aaaaaaaaaaaa"}
    ]


def test_the_certificate(tmp_path: Path) -> None:
    assert keys(tmp_path, "ca").stdout == "-----BEGIN\n"
    own = {**GATEWAY, "certificate_file": "c", "certificate_key_file": "k"}
    result = keys(tmp_path, "ca", wish=own)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has a certificate of yours" in result.stderr


def test_a_key_is_printed_once_and_handed_over_in_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], dict[str, Any], int]] = []
    run = cli_keys.pyinfra

    def noted(*words: str) -> Any:
        folder = Path(next(word for word in words if word.startswith("x_folder=")).removeprefix("x_folder="))
        order = json.loads((folder / "order.json").read_text())
        seen.append((list(words), order, folder.stat().st_mode & 0o777))
        return run(*words)

    monkeypatch.setattr(cli_keys, "pyinfra", noted)
    result = keys(tmp_path, "add", "bob")
    assert result.exit_code == 0, result.stderr
    key = result.stdout.strip()
    ((words, order, mode),) = seen
    assert order["line"].split()[:2] == ["bob", key]
    assert mode == 0o700
    assert key not in " ".join(words) + result.stderr
    assert "bob may ask https://llm.home.arpa/v1" in result.stderr
    assert not Path(words[-2].removeprefix("x_folder=")).exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "alice"), "'alice' has a key; to change it, add another name"),
        (("add", "Bob"), "'Bob': use lower-case letters"),
        (("revoke", "bob"), "'bob' has no key; these have: alice"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: tuple[str, str], why: str) -> None:
    result = keys(tmp_path, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr


def test_a_user_loses_a_key(tmp_path: Path) -> None:
    result = keys(tmp_path, "revoke", "alice")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "the key of alice is refused from now on" in result.stderr


@pytest.mark.parametrize("words", [("add", "bob"), ("revoke", "alice"), ("list",), ("ca",)])
class TestEveryCommand:
    def test_a_node_without_a_gateway(self, tmp_path: Path, words: tuple[str, ...]) -> None:
        result = keys(tmp_path, *words, wish=None)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "@fake/node: has no gateway; write gateway: {'host': ...} into the inventory" in result.stderr

    def test_one_that_does_not_run(self, tmp_path: Path, words: tuple[str, ...]) -> None:
        result = keys(tmp_path, *words, state="inactive")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "its gateway is inactive; deploy first" in result.stderr


@pytest.mark.parametrize("words", [("add", "bob"), ("revoke", "alice")])
def test_keys_of_the_owners_file(tmp_path: Path, words: tuple[str, str]) -> None:
    users = tmp_path / "users"
    result = keys(tmp_path, *words, wish={**GATEWAY, "user_keys_file": str(users)})
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"its keys come from {users} (gateway.user_keys_file); edit that and deploy" in result.stderr
