"""`moehost router`: what is asked of which router, and what is said of it; pyinfra is a recorder here."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from click.testing import CliRunner

from moehost import cli_router, routing
from moehost.rolling import RouterError

DATA: dict[str, dict[str, Any]] = {
    "epyc1": {},
    "@podman/epyc2": {},
    "epyc3": {},
    "front": {"router": {"host": "llm.home.arpa", "nodes": ["epyc1", "@podman/epyc2"], "drain_minutes": 30}},
    "other": {"router": {"host": "two.home.arpa", "nodes": ["epyc3"]}},
}
STATUS = {
    "nodes": {
        "epyc1": {"requests": 2, "drained_until": None, "models": {"tiny": {"state": "UP", "check": ""}}},
        "podman_epyc2": {"requests": 0, "drained_until": 4e9, "models": {"tiny": {"state": "MAINT", "check": ""}}},
    },
    "models": {"tiny": {"waiting": 1, "nodes_ready": 1}},
    "workers": 1,
}


class Said:
    """What was asked of pyinfra, and what it answers."""

    def __init__(self) -> None:
        self.words: list[tuple[str, ...]] = []
        self.code, self.talk = 0, ""
        nobody = {"nodes": {}, "models": {}, "workers": 1}
        self.answers = {
            "front": {"state": "active", "status": json.dumps(STATUS)},
            "other": {"state": "active", "status": json.dumps(nobody)},
        }

    def pyinfra(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.words.append(words)
        return subprocess.CompletedProcess(words, self.code, "", self.talk)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    found = Said()
    monkeypatch.setattr(routing, "pyinfra", found.pyinfra)
    monkeypatch.setattr(routing, "ask_hosts", lambda *_: (found.answers, {}))
    monkeypatch.setattr(cli_router, "hosts", lambda _: DATA)
    return found


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli_router.router, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def test_a_drain_goes_to_the_router_before_the_node(said: Said) -> None:
    code, talk = run("drain", "@podman/epyc2")
    assert code == 0
    (words,) = said.words
    assert words[:4] == ("inventory", "--limit", "front", "roles/router/turn.py")
    data = dict(word.split("=", 1) for word in words if word.startswith("x_"))
    assert data == {"x_labels": "podman_epyc2", "x_do": "drain", "x_lease_s": "1800", "x_wait_s": "3600"}
    assert "no request is under way" in talk


def test_how_long_and_of_two_routers(said: Said) -> None:
    assert run("drain", "epyc1", "epyc3", "--minutes", "5", "--wait", "7")[0] == 0
    assert [words[2] for words in said.words] == ["front", "other"]
    assert {word for words in said.words for word in words if word.startswith("x_lease")} == {"x_lease_s=300"}


def test_one_that_is_not_through(said: Said) -> None:
    said.code, said.talk = 1, "    [front] epyc1: after 7 s there is still epyc1: 2 request(s); no new ones come\n"
    code, talk = run("drain", "epyc1")
    assert code == 1
    assert "still epyc1: 2 request(s)" in talk


def test_a_node_that_no_router_knows(said: Said) -> None:
    code, talk = run("ready", "epyc9")
    assert code == 2
    assert "epyc9: no router stands before it; they stand before epyc1, @podman/epyc2, epyc3" in talk
    assert said.words == []


def test_status(said: Said) -> None:
    code, shown = run("status")
    assert code == 0
    assert "front (https://llm.home.arpa:443)" in shown
    assert "drained until" in shown
    assert "tiny: 1 node(s) ready, 1 request(s) wait" in shown
    data = json.loads(run("status", "--json")[1])
    assert list(data["front"]["nodes"]) == ["epyc1", "@podman/epyc2"]


def test_a_router_that_does_not_run(said: Said) -> None:
    said.answers["front"] = {"state": "inactive", "status": ""}
    code, talk = run("status")
    assert (code, "front: can't be asked: its router is inactive" in talk) == (1, True)


def test_what_a_rollout_asks(said: Said) -> None:
    there = routing.routers("inventory", DATA)
    assert there.drained() == ["@podman/epyc2"]
    there.ready(["epyc1"])
    there.drain(["nobody"])
    assert len(said.words) == 1
    said.code = 1
    with pytest.raises(RouterError, match="front: drain of epyc1"):
        there.drain(["epyc1"])
