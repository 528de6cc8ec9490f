"""The stand-in engine: it must fool all that the real one would satisfy, or the tests that use it prove nothing."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moehost.engine import API_KEYS, Offload, Version, command_line, probe_arguments, refusal, unknown_flags
from moehost.settings import read
from roles.operations import render
from tests.fixtures.tiny_gguf import gguf_bytes
from tests.stand_in import repository

CPU = Offload(context=8192, parallel=2, batch=2048, ubatch=512, threads=2, threads_batch=2)
MODEL = {"name": "m", "source": "file:///srv/m.gguf"}
ARGUMENTS = command_line(read({"services": [{"name": "tiny", "model": MODEL}]}).services[0], "m.gguf", CPU, "ik")
KEY = "a key"


def test_the_repository_is_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever git is told by its environment, and however often it is made."""
    commits = repository.make(tmp_path / "one")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert repository.make(tmp_path / "two") == repository.make(tmp_path / "one") == commits
    assert list(commits) == ["good", *repository.FAULTS, "better"]
    assert len(set(commits.values())) == len(commits)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `good` was built."""
    missing = [program for program in ("cmake", "ninja", "c++") if not shutil.which(program)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this computer")
    folder = tmp_path_factory.mktemp("stand-in")
    commits = repository.make(folder / "upstream.git")
    git("clone", "--quiet", "--no-checkout", "--filter=blob:none", f"file://{folder}/upstream.git", folder / "source")
    git("-C", folder / "source", "checkout", "--quiet", commits["good"])
    options = ["-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DCMAKE_CUDA_ARCHITECTURES=120", "-DLLAMA_CURL=OFF"]
    configured = subprocess.run(
        ["cmake", "-G", "Ninja", "-S", folder / "source", "-B", folder / "build", *options],
        capture_output=True,
        text=True,
    )
    assert (configured.returncode, configured.stderr) == (0, "")
    built = subprocess.run(["cmake", "--build", folder / "build"], capture_output=True, text=True)
    assert built.returncode == 0 and "warning" not in built.stdout, built.stdout
    return folder / "build"


def git(*arguments: str | Path) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def say(build: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """llama-server with arguments with which it soon ends."""
    return subprocess.run([build / "bin/llama-server", *arguments], capture_output=True, text=True, timeout=10)


class Served:
    """A stand-in that serves."""

    def __init__(self, build: Path, folder: Path) -> None:
        (folder / "m.gguf").write_bytes(gguf_bytes({"blk.0.weight": 10}))
        (folder / "keys").write_text(f"{KEY}\n")
        arguments = ["keys" if word == API_KEYS["native"] else word for word in ARGUMENTS]
        argv = [str(build / "bin/llama-server"), *arguments, "--host", "127.0.0.1", "--port", "0"]
        self.process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        [port] = next(filter(None, (re.findall(r"listening \| port=(\d+)", line) for line in self.process.stdout)))
        self.port = int(port)

    def send(self, path: str, body: object = None, key: str = KEY) -> http.client.HTTPConnection:
        """Asks, and leaves the answer to be read later."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Authorization": f"Bearer {key}"}
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), headers)
        return connection

    def ask(self, path: str, body: object = None, key: str = KEY) -> http.client.HTTPResponse:
        return self.send(path, body, key).getresponse()

    def answer(self, path: str, body: object = None) -> Any:
        return json.loads(self.ask(path, body).read())

    def wait_until(self, what: str, count: int) -> None:
        """Until its metrics say so."""
        while f"\nllamacpp:requests_{what} {count}\n" not in self.ask("/metrics").read().decode():
            assert self.process.poll() is None
            time.sleep(0.02)


@pytest.fixture
def served(build: Path, tmp_path: Path) -> Iterator[Served]:
    server = Served(build, tmp_path)
    yield server
    server.process.kill()
    server.process.communicate()


# A second.
LONG = {"prompt": "x", "n_predict": 100}


def tokens(question: http.client.HTTPConnection) -> int:
    """How many the answer has."""
    return int(json.loads(question.getresponse().read())["timings"]["predicted_n"])


def events(response: http.client.HTTPResponse) -> list[str]:
    return [event.removeprefix("data: ") for event in response.read().decode().split("\n\n") if event]


@pytest.mark.slow
class TestProgram:
    def test_version_is_that_of_the_commit(self, build: Path) -> None:
        ran = say(build, "--version")
        source = str(build.parent / "source")
        assert (ran.returncode, ran.stdout) == (0, "")
        version = Version.parse(ran.stderr)
        assert version.build == int(git("-C", source, "rev-list", "--count", "HEAD")) > 1
        assert version.commit == git("-C", source, "rev-parse", "--short", "HEAD")

    def test_help_is_that_of_the_real_engine(self, build: Path) -> None:
        ran = say(build, "--help")
        assert (ran.returncode, ran.stdout) == (1, repository.HELP.read_text())
        assert unknown_flags(ARGUMENTS, ran.stdout, "ik") == []

    def test_a_good_command_line_misses_only_the_model(self, build: Path) -> None:
        ran = say(build, *probe_arguments(ARGUMENTS))
        assert (ran.returncode, refusal(ran.stderr + ran.stdout)) == (1, None)

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            (["--jinjaa"], "unknown argument: --jinjaa"),
            (["--port"], "invalid parameter for argument: --port"),
            (["--port", "http"], "stoi (a value is no number, or too large)"),
        ],
    )
    def test_a_wrong_command_line_is_refused_with_a_reason(self, build: Path, more: list[str], reason: str) -> None:
        ran = say(build, *probe_arguments(ARGUMENTS), *more)
        assert (ran.returncode, refusal(ran.stderr + ran.stdout)) == (1, reason)

    def test_what_is_no_model_is_not_loaded(self, build: Path, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_text("Not a model.")
        ran = say(build, "-m", str(tmp_path / "m.gguf"), "--port", "0")
        assert ran.returncode == 1 and f"failed to load model '{tmp_path}/m.gguf'" in ran.stderr

    def test_it_has_the_instruction_that_proves_vnni(self, build: Path) -> None:
        if os.uname().machine != "x86_64" or not shutil.which("objdump"):
            pytest.skip("no objdump here, or no x86")
        code = subprocess.run(["objdump", "-d", build / "bin/llama-server"], capture_output=True, check=True).stdout
        assert b"vpdpbusd" in code

    @pytest.mark.parametrize("program", ["llama-bench", "llama-sweep-bench"])
    def test_the_benchmarks_are_there(self, build: Path, program: str) -> None:
        ran = subprocess.run([build / "bin" / program], capture_output=True, text=True)
        assert ran.returncode == 0 and "stand-in" in ran.stdout


@pytest.mark.slow
class TestServer:
    def test_answers_take_their_time(self, served: Served) -> None:
        asked = {"prompt": [33, 34, 35], "n_predict": 8, "cache_prompt": False}
        answer = served.answer("/completion", asked)
        timings = answer["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (3, 8)
        assert timings["predicted_per_second"] == pytest.approx(100, rel=0.2)
        assert re.fullmatch(r"( [a-z]+)+", answer["content"])
        assert served.answer("/completion", asked)["content"] == answer["content"]

    def test_chat(self, served: Served) -> None:
        asked = {"messages": [{"role": "user", "content": "Say {[\"'"}], "max_tokens": 4}
        answer = served.answer("/v1/chat/completions", asked)
        assert answer["usage"]["completion_tokens"] == answer["timings"]["predicted_n"] == 4
        whole = answer["choices"][0]["message"]["content"]
        *parts, done = events(served.ask("/v1/chat/completions", {**asked, "stream": True}))
        deltas = [json.loads(part)["choices"][0]["delta"] for part in parts]
        assert "".join(delta.get("content") or "" for delta in deltas) == whole
        assert (len(parts), done) == (1 + 4 + 1, "[DONE]")  # who speaks, four tokens, the end

    def test_completion_in_a_stream(self, served: Served) -> None:
        *parts, last = map(
            json.loads, events(served.ask("/completion", {"prompt": "x", "n_predict": 3, "stream": True}))
        )
        assert [part["stop"] for part in parts] == [False] * 3
        assert last["generated_text"] == "".join(part["content"] for part in parts)
        assert last["timings"]["predicted_n"] == 3

    @pytest.mark.parametrize(
        ("path", "status"),
        [("/health", 200), ("/version", 401), ("/metrics", 401), ("/slots", 401), ("/completion", 401)],
    )
    def test_without_the_key(self, served: Served, path: str, status: int) -> None:
        assert served.ask(path, key="another").status == status

    def test_slots_are_not_shown(self, served: Served) -> None:
        assert (served.ask("/slots").status, served.ask("/nothing").status) == (501, 404)

    @pytest.mark.parametrize(("body", "status"), [({"n_predict": 1}, 400), (["no object"], 500)])
    def test_questions_that_are_none(self, served: Served, body: object, status: int) -> None:
        response = served.ask("/completion", body)
        assert (response.status, json.loads(response.read())["error"]["code"]) == (status, status)

    def test_requests_wait_for_a_slot_and_are_counted(self, served: Served) -> None:
        questions = [served.send("/completion", LONG) for _ in range(CPU.parallel + 1)]
        served.wait_until("processing", CPU.parallel)
        served.wait_until("deferred", 1)
        assert served.answer("/health")["status"] == "no slot available"
        assert [tokens(question) for question in questions] == [100] * 3

    def test_a_stopped_server_finishes_its_answers(self, served: Served) -> None:
        question = served.send("/completion", LONG)
        served.wait_until("processing", 1)
        served.process.terminate()
        assert tokens(served.send("/completion", {"prompt": "late", "n_predict": 2})) == 2
        assert served.process.poll() is None
        assert tokens(question) == 100
        assert served.process.wait(timeout=5) == 0

    def test_a_second_signal_ends_it_at_once(self, served: Served) -> None:
        question = served.send("/completion", LONG)
        served.wait_until("processing", 1)
        served.process.terminate()
        served.ask("/health")  # the first signal has come
        served.process.terminate()
        assert served.process.wait(timeout=5) == 1
        with pytest.raises(ConnectionError):
            question.getresponse()


@pytest.mark.slow
def test_the_warm_up_of_a_start_has_its_rates(served: Served, tmp_path: Path) -> None:
    (tmp_path / "api-keys").write_text(f"{KEY}\n")
    program = tmp_path / "warm-up"
    program.write_text(render("llama_server/warm-up.j2"))
    done = subprocess.run(
        ["sh", program, f"http://127.0.0.1:{served.port}", "60", "16", "528"],
        env={"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Half a millisecond for a token of the prompt, ten for one of the answer, and what a busy computer adds.
    rates = re.findall(r"round (\d): (\d+) tokens: prompt (\d+[.]\d) tok/s, decode (\d+[.]\d) tok/s", done.stdout)
    assert [each[:2] for each in rates] == [("1", "16"), ("1", "528"), ("2", "16"), ("2", "528")]
    assert all(0 < float(prompt) <= 2000 and 0 < float(decode) <= 100 for *_, prompt, decode in rates)
