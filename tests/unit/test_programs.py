"""The programs of a start, run by `sh` against a server on loopback that behaves as llama-server may."""

import json
import os
import re
import shutil
import socket
import subprocess
import threading

import pytest

from roles.operations import render
from tests.fixtures.loopback import Handler, Loopback
from tests.fixtures.waiting import until

KEY = "k-0123456789abcdef"
TOLD = {"timings": {"predicted_n": 8}}
CURL = shutil.which("curl")

pytestmark = pytest.mark.skipif(not CURL, reason="curl is not installed")


class Server(Loopback):
    """A stand-in for llama-server: `/health` has these statuses, the last one for ever, completions have `answer`.

    A status of None is no answer at all; a completion takes as long as `delays_s` says, in turn, None being for ever.
    `requests` holds what it was asked: path, headers and body.
    """

    def __init__(self, *health, port=0, answer=TOLD, keys=(KEY,), delays_s=()):
        super().__init__(Question, port)
        self.health, self.answer, self.keys, self.requests = list(health), answer, keys, []
        self.hung_up, self.delays_s = threading.Event(), list(delays_s)

    def __exit__(self, *error):
        self.hung_up.set()
        super().__exit__(*error)

    @property
    def prompts(self):
        """The bodies of the completions that were asked for."""
        return [body for path, _, body in self.requests if path == "/completion"]


class Question(Handler):
    def do_GET(self):
        health = self.owner.health
        status = health.pop(0) if len(health) > 1 else health[0]
        self.owner.requests.append((self.path, self.headers, None))
        if status is None:
            self.owner.hung_up.wait()
        else:
            self.answer(status, {"status": "ok" if status == 200 else "loading model"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append((self.path, self.headers, body))
        if self.owner.delays_s:
            self.owner.hung_up.wait(self.owner.delays_s.pop(0))
        if self.headers["Authorization"] in [f"Bearer {key}" for key in self.owner.keys]:
            self.answer(200, self.owner.answer)
        else:
            self.answer(401, {"error": {"message": "Invalid API Key"}})

    def answer(self, status, data):
        self.say(status, json.dumps(data, separators=(",", ":")))


class Bench:
    """Runs the programs as systemd does: credentials and the main process in the environment."""

    def __init__(self, folder):
        self.folder = folder
        self.model, self.keys, self.meminfo = folder / "m.gguf", folder / "api-keys", folder / "meminfo"
        self.model.write_bytes(b"GGUF\x03\0\0\0")
        self.keys.write_text(f"{KEY}\n")
        self.meminfo.write_text("MemTotal:  2048000 kB\nMemAvailable:  1024000 kB\n")
        # A curl that keeps what it was told, in arguments and environment, and then does it.
        self.told = folder / "told"
        (folder / "bin").mkdir()
        curl = folder / "bin/curl"
        curl.write_text(f'#!/bin/sh\n{{ printf "%s\\n" "$@"; env; }} >>{self.told}\nexec {CURL} "$@"\n')
        curl.chmod(0o755)

    def start(self, program, *arguments, main_pid=None, faster=()):
        """The program at work; `faster` shortens times in its text."""
        text = render(f"llama_server/{program}.j2")
        for slow, quick in faster:
            assert slow in text
            text = text.replace(slow, quick)
        path = self.folder / program
        path.write_text(text)
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "CREDENTIALS_DIRECTORY": str(self.folder),
            "MAINPID": str(main_pid or os.getpid()),
            "MEMINFO": str(self.meminfo),
            "PROC": f"{self.folder}/proc",
        }
        command = ["sh", path, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, program, *arguments, **more):
        """Exit code and last words of a program; on standard output it says nothing."""
        code, lines, words = self.hear(program, *arguments, **more)
        assert lines == []
        return code, words

    def hear(self, program, *arguments, **more):
        """Exit code, lines on standard output, and last words of a program."""
        process = self.start(program, *arguments, **more)
        stdout, stderr = process.communicate(timeout=30)
        return process.returncode, stdout.splitlines(), stderr.strip()

    def has_asked(self):
        """Whether a program has called curl yet."""
        return self.told.exists()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def main_process():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


class TestPreflight:
    def test_what_is_needed_is_there(self, bench):
        assert bench.run("preflight", bench.model, 1000) == (0, "")

    @pytest.mark.parametrize(("pages", "code"), [(512, 0), (500, 0), (499, 1), (0, 1)])
    def test_the_pools_of_huge_pages_must_hold_the_model(self, bench, pages, code):
        bench.meminfo.write_text(f"MemAvailable: 2048000 kB\nHugePages_Free: {pages}\nHugepagesize: 2048 kB\n")
        ended, words = bench.run("preflight", bench.model, 1000, 1000)
        assert ended == code
        assert words == (
            ""
            if code == 0
            else f"the model needs 1000 MiB of huge pages, {2 * pages} MiB are free: is the reboot still to come?"
        )

    def test_the_model_is_gone(self, bench):
        bench.model.unlink()
        code, words = bench.run("preflight", bench.model, 1000)
        assert (code, words) == (1, f"the model {bench.model} is not there or not readable: deploy again")

    @pytest.mark.parametrize("content", [b"", b"\0\0\0\0\0", b"GGML", b"<html>"])
    def test_the_model_is_something_else(self, bench, content):
        bench.model.write_bytes(content)
        code, words = bench.run("preflight", bench.model, 1000)
        assert code == 1
        assert words.startswith(f"{bench.model} is no GGUF file")

    @pytest.mark.parametrize("keys", ["", "# none yet\n\n", None], ids=["empty", "a comment", "absent"])
    def test_there_is_no_key(self, bench, keys):
        bench.keys.unlink()
        if keys is not None:
            bench.keys.write_text(keys)
        assert bench.run("preflight", bench.model, 1000) == (1, "there is no API key: deploy again")

    def test_there_is_too_little_memory(self, bench):
        assert bench.run("preflight", bench.model, 1001) == (
            1,
            "the plan needs 1001 MiB of memory, 1000 MiB are available: what else runs here?",
        )


class TestWaitReady:
    QUICK = [("sleep 1", "sleep 0.02")]

    def wait(self, bench, url, limit_s=20, faster=(), **more):
        return bench.run("wait-ready", url, limit_s, faster=[*self.QUICK, *faster], **more)

    def test_a_server_that_answers_is_asked_once(self, bench):
        with Server(200) as server:
            assert self.wait(bench, server.url) == (0, "")
        assert [path for path, _, _ in server.requests] == ["/health"]

    def test_a_server_that_is_loading_is_waited_for(self, bench):
        with Server(503, 503, 503, 200) as server:
            assert self.wait(bench, server.url) == (0, "")
        assert len(server.requests) == 4

    def test_a_server_that_does_not_listen_yet_is_waited_for(self, bench):
        with Server(200) as server:
            port = server.port
        program = bench.start("wait-ready", f"http://127.0.0.1:{port}", 20, faster=self.QUICK)
        until(bench.has_asked, 10)
        with Server(200, port=port):
            _, words = program.communicate(timeout=30)
        assert (program.returncode, words) == (0, "")

    def test_a_server_that_died_is_not_waited_for(self, bench, main_process):
        main_process.kill()
        main_process.wait()
        with Server(503) as server:
            code, words = self.wait(bench, server.url, main_pid=main_process.pid)
        assert (code, words) == (1, "the server ended while it was loading")
        assert len(server.requests) == 1

    def test_a_server_that_dies_ends_the_wait(self, bench, main_process):
        with Server(503) as server:
            program = bench.start("wait-ready", server.url, 20, main_pid=main_process.pid, faster=self.QUICK)
            until(lambda: len(server.requests) >= 2, 10)
            main_process.kill()
            main_process.wait()
            _, words = program.communicate(timeout=30)
        assert (program.returncode, words.strip()) == (1, "the server ended while it was loading")

    @pytest.mark.parametrize("status", [503, 404, 500])
    def test_the_wait_has_a_limit(self, bench, status):
        with Server(status) as server:
            code, words = self.wait(bench, server.url, limit_s=1)
        assert (code, words) == (1, f"no answer after 1 s (last HTTP status: {status})")
        assert len(server.requests) > 1

    def test_a_server_that_accepts_and_says_nothing_does_not_hold_up_the_wait(self, bench):
        with Server(None) as server:
            code, words = self.wait(bench, server.url, limit_s=3, faster=[("--max-time 10", "--max-time 0.3")])
        assert (code, words) == (1, "no answer after 3 s (last HTTP status: 000)")
        assert len(server.requests) > 1

    def test_a_clock_that_is_set_meanwhile_ends_no_wait(self, bench):
        date = bench.folder / "bin/date"
        date.write_text(f"#!/bin/sh\necho $(($(wc -l <{bench.told}) * 31536000))\n")
        date.chmod(0o755)
        bench.told.write_text("")
        with Server(503, 503, 503, 200) as server:
            assert self.wait(bench, server.url) == (0, "")

    def test_health_is_asked_without_a_key(self, bench):
        with Server(200) as server:
            self.wait(bench, server.url)
        assert KEY not in str(server.requests) + bench.told.read_text()


class TestWarmUp:
    TIMINGS = {"prompt_n": 16, "prompt_ms": 80.0, "predicted_n": 8, "predicted_ms": 350.0}

    def warm_up(self, bench, url, *tokens, limit_s=20):
        return bench.hear("warm-up", url, limit_s, *tokens)

    def test_a_prompt_for_each_length_exactly_in_two_rounds(self, bench):
        with Server() as server:
            code, _, words = self.warm_up(bench, server.url, 1, 16, 528)
        assert (code, words) == (0, "")
        assert [len(body["prompt"]) for body in server.prompts] == [1, 16, 528] * 2

    def test_a_prompt_that_no_command_line_could_hold(self, bench):
        with Server() as server:
            assert self.warm_up(bench, server.url, 60000)[0] == 0
        assert [len(body["prompt"]) for body in server.prompts] == [60000] * 2

    def test_prompts_are_tokens_that_every_vocabulary_has_and_do_not_repeat_at_once(self, bench):
        with Server() as server:
            self.warm_up(bench, server.url, 256)
        prompt = server.prompts[0]["prompt"]
        assert all(type(token) is int and 0 <= token < 256 for token in prompt)
        assert len(set(prompt[:64])) == 64

    def test_every_prompt_is_computed_and_answered_with_eight_tokens(self, bench):
        with Server() as server:
            self.warm_up(bench, server.url, 16)
        first, second = server.prompts
        assert first == second
        del first["prompt"]
        assert first == {"n_predict": 8, "cache_prompt": False, "ignore_eos": True}

    def test_the_key_is_in_the_request_and_nowhere_else(self, bench):
        with Server() as server:
            _, lines, _ = self.warm_up(bench, server.url, 16)
        assert [headers["Authorization"] for _, headers, _ in server.requests] == [f"Bearer {KEY}"] * 2
        assert f"{server.url}/completion" in bench.told.read_text()
        assert KEY not in bench.told.read_text() + str(lines)

    @pytest.mark.parametrize("text", [f"{KEY}\nanother\n", f"# of the owner\n\n{KEY}\n", KEY])
    def test_the_first_key_of_the_file_is_taken(self, bench, text):
        bench.keys.write_text(text)
        with Server() as server:
            assert self.warm_up(bench, server.url, 16)[0] == 0

    def test_a_line_for_each_request_has_the_rates_of_the_server(self, bench):
        # Seven tokens in 350 ms: the first of the eight comes with the prompt.
        with Server(answer={"content": "x", "timings": self.TIMINGS}) as server:
            _, lines, _ = self.warm_up(bench, server.url, 16)
        assert [re.sub(r"\d+[.]\d\d s", "T s", line) for line in lines[:-1]] == [
            f"warm-up: round {n}: 16 tokens: prompt 200.0 tok/s, decode 20.0 tok/s, T s" for n in (1, 2)
        ]

    def test_a_prompt_that_came_from_a_cache_is_seen(self, bench):
        with Server(answer={"timings": self.TIMINGS | {"prompt_n": 1}}) as server:
            _, lines, _ = self.warm_up(bench, server.url, 16)
        assert lines[1].startswith("warm-up: round 2: 16 tokens (1 computed): prompt 12.5 tok/s")

    def test_the_words_of_an_answer_are_no_timings(self, bench):
        answer = {"content": '"prompt_n":7,"prompt_ms":7,"predicted_n":8', "timings": self.TIMINGS}
        with Server(answer=answer) as server:
            _, lines, _ = self.warm_up(bench, server.url, 16)
        assert "16 tokens: prompt 200.0 tok/s, decode 20.0 tok/s" in lines[0]

    @pytest.mark.parametrize("value", [0, 0.0, None, "fast", "", -1, [], {}])
    def test_times_that_are_none_do_not_matter(self, bench, value):
        timings = dict.fromkeys(self.TIMINGS, value) | {"predicted_n": 8}
        with Server(answer={"timings": timings}) as server:
            code, lines, words = self.warm_up(bench, server.url, 16)
        assert (code, words, len(lines)) == (0, "", 3)
        assert "16 tokens: prompt ? tok/s, decode ? tok/s, " in lines[0]

    def test_the_last_line_says_what_the_first_round_cost(self, bench):
        # Only the long prompt's first time is slow.
        with Server(delays_s=[0, 0.6, 0, 0]) as server:
            _, lines, _ = self.warm_up(bench, server.url, 16, 528)
        found = re.fullmatch(
            r"warm-up: 528 tokens: first (\d[.]\d\d) s, then (\d[.]\d\d) s \((\d+[.]\d) times\)", lines[-1]
        )
        assert found, lines[-1]
        first_s, again_s, times = map(float, found.groups())
        assert 0.6 <= first_s < 2
        assert again_s < first_s
        assert times > 1

    def test_numbers_have_a_point_in_every_locale(self, bench):
        with Server() as server:
            self.warm_up(bench, server.url, 16)
        assert "\nLC_ALL=C\n" in bench.told.read_text()

    def test_all_requests_together_have_a_time_limit(self, bench):
        # None of them takes as long as the limit.
        with Server(delays_s=[0.8] * 6) as server:
            code, lines, words = self.warm_up(bench, server.url, 16, 32, 528, limit_s=2)
        assert code == 1
        assert len(lines) == 2
        assert words.splitlines()[-1] == (
            "warm-up: not all answered within 2 s, it was at 528 tokens of round 1: "
            "look above for what the engine does; if it is only slow, raise warm_up_timeout_s"
        )

    def test_an_engine_that_never_answers_is_not_waited_for(self, bench):
        with Server(delays_s=[None]) as server:
            code, lines, words = self.warm_up(bench, server.url, 16, limit_s=1)
        assert (code, lines) == (1, [])
        assert "not all answered within 1 s, it was at 16 tokens of round 1" in words

    def test_a_key_that_the_server_does_not_know_fails_with_its_words(self, bench):
        with Server(keys=("another",)) as server:
            code, _, words = self.warm_up(bench, server.url, 16, 32)
        assert code == 1
        assert 'warm-up with 16 tokens failed: {"error":{"message":"Invalid API Key"}}' in words
        assert KEY not in words
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "answer",
        [{"timings": {"predicted_n": 7}}, {"content": "predicted_n"}, {}, {"error": {"message": "invalid UTF-8"}}],
    )
    def test_an_answer_of_fewer_tokens_is_none(self, bench, answer):
        with Server(answer=answer) as server:
            code, _, words = self.warm_up(bench, server.url, 16, 32)
        assert code == 1
        assert words == f"warm-up with 16 tokens got no 8 tokens back: {json.dumps(answer, separators=(',', ':'))}"
        assert len(server.requests) == 1

    def test_a_long_answer_does_not_fill_the_journal(self, bench):
        with Server(answer={"content": "x" * 100_000}) as server:
            _, _, words = self.warm_up(bench, server.url, 16)
        assert len(words) < 400

    def test_a_server_that_is_gone_fails(self, bench):
        with Server() as server:
            url = server.url
        code, _, words = self.warm_up(bench, url, 16)
        assert code == 1
        assert words.startswith("curl: (7) ")
        assert words.endswith("warm-up with 16 tokens failed:")


class TestWorkerListens:
    """The kernel's table of sockets, as it writes it."""

    TABLE = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0200000A:C384 00000000:0000 0A 00000000:00000000\n"
        "   1: 0200000A:C385 0100000A:D431 01 00000000:00000000\n"
    )

    def listens(self, folder, *words):
        (folder / "tcp").write_text(self.TABLE)
        program = render("rpc_worker/worker-listens.j2")
        environment = {**os.environ, "TCP": str(folder / "tcp")}
        return subprocess.run(["sh", "-c", program, "x", *words], capture_output=True, text=True, env=environment)

    def test_a_socket_that_listens_there(self, tmp_path):
        assert self.listens(tmp_path, "10.0.0.2", "50052", "1").returncode == 0

    @pytest.mark.parametrize(
        ("address", "port"), [("10.0.0.3", "50052"), ("10.0.0.2", "50051"), ("10.0.0.2", "50053")]
    )
    def test_another_address_or_port_or_a_mere_connection(self, tmp_path, address, port):
        done = self.listens(tmp_path, address, port, "1")
        assert done.returncode == 1
        assert done.stderr == f"nothing listens at {address}:{port}: is that an address of this node?\n"

    def test_the_kernel_of_this_computer(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
            program = render("rpc_worker/worker-listens.j2")
            done = subprocess.run(["sh", "-c", program, "x", "127.0.0.1", port, "1"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


class TestWorkersAnswer:
    def answer(self, *words):
        program = render("llama_server/workers-answer.j2")
        return subprocess.run(["bash", "-c", program, "x", *words], capture_output=True, text=True)

    def test_all_of_them(self):
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            names = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
            assert self.answer("2", *names).returncode == 0

    def test_one_that_does_not_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            there = f"127.0.0.1:{server.getsockname()[1]}"
            done = self.answer("1", there, "127.0.0.1:1")
        assert done.returncode == 1
        assert done.stderr == "the worker 127.0.0.1:1 does not answer: is its node up, and deployed?\n"
