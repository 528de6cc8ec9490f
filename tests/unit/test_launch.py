"""The program that launches engines on a node, with shell commands as engines and no systemd."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moehost import launch, switch
from moehost.launch import Run, Session, Task
from moehost.switch import Server

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="engines run as another account, which only root can choose"
)
SERVER = Server("llama-server-q.service", "127.0.0.1:1", "/nonexistent")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the simulated systemd was told; the service runs."""
    told: list[str] = []
    monkeypatch.setattr(switch, "unit_property", lambda unit, key: "active")
    monkeypatch.setattr(switch, "drain", lambda server, limit_s, say: told.append(f"drain {limit_s:g}"))
    monkeypatch.setattr(switch, "systemctl", lambda *words, timeout_s=60: told.append(" ".join(words)))
    return told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for each in ("jobs", "results"):
        (tmp_path / each).mkdir()
    (tmp_path / "alive").touch()
    return tmp_path


@pytest.fixture
def answered(folder: Path, calls: list[str]) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Lets a session answer a job of these runs."""
    session = Session(folder, Task(SERVER, "nobody", 7.0, 60.0))
    thread = threading.Thread(target=session.run)
    thread.start()

    def answer(*runs: Run) -> list[dict[str, Any]]:
        number = len(list((folder / "jobs").iterdir()))
        switch.write(folder / f"jobs/{number}.json", json.dumps([asdict(each) for each in runs]))
        result, end_s = folder / f"results/{number}.json", time.monotonic() + 30
        while not result.exists():
            assert thread.is_alive() and time.monotonic() < end_s
            time.sleep(0.02)
        data: list[dict[str, Any]] = json.loads(result.read_text())
        return data

    yield answer
    (folder / "end").touch()
    thread.join(timeout=30)
    assert not thread.is_alive()


def shell(script: str, load: str = "a", timeout_s: float = 20.0) -> Run:
    return Run("bench", load, ["/bin/sh", "-c", script], timeout_s)


def test_the_service_is_drained_and_stopped_and_noted_before(
    answered: Callable[..., Any], folder: Path, calls: list[str]
) -> None:
    answered(shell("true"))
    assert calls == ["drain 7", f"stop {SERVER.unit}"]
    assert (folder / "restore").read_text() == SERVER.unit


def test_an_engine_runs_as_another_account_without_the_programs_environment(
    answered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    (ended,) = answered(Run("bench", "a", ["/bin/sh", "-c", "id -un; env; echo last >&2"], 20.0, {"OWN": "1"}))
    assert ended["output"].startswith("nobody\n")
    assert "OWN=1" in ended["output"] and "LLAMA_ARG" not in ended["output"]
    assert (ended["why"], ended["status"], ended["said"]) == ("ended", 0, "last\n")


def test_after_a_failure_only_other_loads_are_tried(answered: Callable[..., Any]) -> None:
    ended = answered(shell("exit 3"), shell("true"), shell("kill -9 $$", "b"), shell("true", "c"))
    assert [(each["load"], each["status"]) for each in ended] == [("a", 3), ("b", -9), ("c", 0)]


def test_an_engine_that_hangs_is_ended_with_its_children(answered: Callable[..., Any], folder: Path) -> None:
    mark = f"sleep 300.{os.getpid()}"
    (ended,) = answered(shell(f"{mark} & {mark}", timeout_s=0.5))
    assert (ended["why"], ended["status"]) == ("late", None)
    # It was waited for; its child dies of the same signal, when its turn comes.
    deadline_s = time.monotonic() + 10
    while found := [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _words(path)]:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)


def _words(cmdline: Path) -> str:
    try:
        return cmdline.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def test_an_engine_that_is_not_there_is_a_finding(answered: Callable[..., Any]) -> None:
    (ended,) = answered(Run("bench", "a", ["/nonexistent/llama-bench"], 5.0))
    assert ended["status"] == 127
    assert ended["said"] == "/nonexistent/llama-bench: does not start (No such file or directory)"


def test_a_port_that_is_taken_is_a_finding(answered: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        (ended,) = answered(Run("server", "a", ["/bin/true"], 5.0, port=holder.getsockname()[1]))
    assert ended["why"] == "port"


def test_a_server_that_ends_before_it_answers_is_a_finding(answered: Callable[..., Any]) -> None:
    (ended,) = answered(Run("server", "a", ["/bin/sh", "-c", "exit 4"], 20.0, requests=[{}]))
    assert (ended["why"], ended["status"], ended["answers"]) == ("ended", 4, [])


def test_nobody_who_listens_ends_it_in_the_middle_of_a_launch(folder: Path, calls: list[str]) -> None:
    switch.write(folder / "jobs/0.json", json.dumps([asdict(shell("sleep 60", timeout_s=60.0))]))
    began = time.monotonic()
    Session(folder, Task(SERVER, "nobody", 1.0, silence_s=1.0)).run()
    assert time.monotonic() - began < 20
    assert not (folder / "results/0.json").exists()


def test_a_task_that_cannot_be_read_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.json").write_text("{}")
    assert launch.main(str(tmp_path)) == 2
    assert "task.json: can't be read" in capsys.readouterr().err
