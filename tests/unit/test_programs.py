"""The programs of a start, run by a real shell against a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parents[2] / "templates/llama_server"
KEY = "a-key-of-the-test"


class Server(ThreadingHTTPServer):
    """Answers as llama-server does; `health` and `answer` can be changed, `asked` keeps the completions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.health, self.answer, self.asked = 200, {"timings": {"predicted_n": 8}}, list[dict[str, Any]]()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(self.server.health, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._send(401, {"error": "no key"})
            return
        self.server.asked.append(body)
        self._send(200, self.server.answer)

    def _send(self, status: int, data: Any) -> None:
        body = json.dumps(data, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(PROGRAMS / f"{program}.j2"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


@pytest.fixture
def credentials(tmp_path: Path) -> str:
    (tmp_path / "api-keys").write_text(f"{KEY}\nanother\n")
    return str(tmp_path)


class TestWaitReady:
    def test_a_server_that_answers_is_ready(self, server: Server) -> None:
        assert run("wait-ready", url(server), "5", MAINPID=str(os.getpid())).returncode == 0

    def test_a_late_answer_is_waited_for(self, server: Server) -> None:
        server.health = 503
        threading.Timer(1.5, lambda: setattr(server, "health", 200)).start()
        started = time.monotonic()
        assert run("wait-ready", url(server), "20", MAINPID=str(os.getpid())).returncode == 0
        assert time.monotonic() - started >= 1.4

    def test_a_server_that_ended_is_not_waited_for(self) -> None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        done = run("wait-ready", "http://127.0.0.1:9", "600", MAINPID=str(ended.pid))
        assert (done.returncode, done.stderr) == (1, "the server ended while it was loading\n")

    def test_patience_ends(self, server: Server) -> None:
        server.health = 503
        done = run("wait-ready", url(server), "0", MAINPID=str(os.getpid()))
        assert (done.returncode, done.stderr) == (1, "no answer after 0 s (last HTTP status: 503)\n")


class TestWarmUp:
    def test_prompts_have_exactly_the_tokens_asked_for(self, server: Server, credentials: str) -> None:
        done = run("warm-up", url(server), "1", "16", "2064", CREDENTIALS_DIRECTORY=credentials)
        assert done.returncode == 0, done.stderr
        assert [len(body["prompt"]) for body in server.asked] == [1, 16, 2064]
        assert all(type(token) is int for body in server.asked for token in body["prompt"])
        assert all(body["cache_prompt"] is False for body in server.asked)

    def test_no_answer_is_a_failure(self, server: Server, credentials: str) -> None:
        server.answer = {"timings": {"predicted_n": 0}}
        done = run("warm-up", url(server), "16", CREDENTIALS_DIRECTORY=credentials)
        assert done.returncode == 1
        assert "warm-up with 16 tokens got no 8 tokens back" in done.stderr

    def test_a_refusal_is_a_failure(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "api-keys").write_text("wrong\n")
        done = run("warm-up", url(server), "16", CREDENTIALS_DIRECTORY=str(tmp_path))
        assert done.returncode == 1
        assert "warm-up with 16 tokens failed" in done.stderr

    def test_the_key_is_in_no_command_line(self, server: Server, credentials: str, tmp_path: Path) -> None:
        # A curl before the real one on the path notes what it was called with.
        spy = tmp_path / "bin/curl"
        spy.parent.mkdir()
        spy.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\nexec /usr/bin/curl "$@"\n')
        spy.chmod(0o755)
        path = f"{spy.parent}:{os.environ['PATH']}"
        done = run("warm-up", url(server), "16", CREDENTIALS_DIRECTORY=credentials, PATH=path)
        assert done.returncode == 0, done.stderr
        arguments = (tmp_path / "arguments").read_text()
        assert "/completion" in arguments
        assert KEY not in arguments


class TestPreflight:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        (tmp_path / "m.gguf").write_bytes(b"GGUF....")
        return tmp_path / "m.gguf"

    @pytest.fixture
    def memory(self, tmp_path: Path) -> str:
        (tmp_path / "meminfo").write_text("MemTotal: 2048000 kB\nMemAvailable: 1024000 kB\n")
        return str(tmp_path / "meminfo")

    def test_all_is_well(self, model: Path, memory: str, credentials: str) -> None:
        done = run("preflight", str(model), "1000", MEMINFO=memory, CREDENTIALS_DIRECTORY=credentials)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda model: model.unlink(), "is not there or not readable"),
            (lambda model: model.write_bytes(b"<htm"), "is no GGUF file"),
        ],
    )
    def test_a_model_that_is_none(self, model: Path, memory: str, credentials: str, change: Any, said: str) -> None:
        change(model)
        done = run("preflight", str(model), "1", MEMINFO=memory, CREDENTIALS_DIRECTORY=credentials)
        assert done.returncode == 1
        assert said in done.stderr

    def test_too_little_memory(self, model: Path, memory: str, credentials: str) -> None:
        done = run("preflight", str(model), "1001", MEMINFO=memory, CREDENTIALS_DIRECTORY=credentials)
        assert done.returncode == 1
        assert "the plan needs 1001 MiB of memory, 1000 MiB are available" in done.stderr

    def test_no_key(self, model: Path, memory: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        done = run("preflight", str(model), "1", MEMINFO=memory, CREDENTIALS_DIRECTORY=str(tmp_path / "empty"))
        assert done.returncode == 1
        assert "there is no API key" in done.stderr
