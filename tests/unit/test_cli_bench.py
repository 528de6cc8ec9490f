"""`moehost bench` against a simulated server, as a user runs it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moehost import results
from moehost.runs import RunsError
from tests.fixtures.simulated_server import KEY, SimulatedServer

SHORT = ("--lengths", "32,64", "--runs", "8", "--answer-tokens", "8", "--warm-ups", "1")


def command(*arguments: object) -> list[str]:
    """The command line of the program of this environment."""
    return [str(Path(sys.executable).with_name("moehost")), "bench", *map(str, arguments)]


def bench(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One call in a folder, whose `results` it writes."""
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A benchmark of a server with a key, its output, and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "key").write_text(f"# mine\n{KEY}\n")
    with SimulatedServer(key=KEY) as server:
        done = bench(folder, server.url, *SHORT, "--api-key-file", "key", "--out", "out", "--json")
    return folder, done


def test_the_contract(measured):
    folder, done = measured
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((folder / "out/summary.json").read_text())
    assert summary["counts"] == {"measured": 8, "warm_up": 1, "discarded": 0, "failed": 0}
    assert len((folder / "out/runs.jsonl").read_text().splitlines()) == 1 + 1 + 8
    assert "<html" in (folder / "out/report.html").read_text()


def test_progress_is_said_with_what_is_left(measured):
    _, done = measured
    assert "moehost: 8 of 8: " in done.stderr
    assert "about 0 s left" in done.stderr


def test_the_key_is_nowhere(measured):
    folder, done = measured
    assert KEY not in done.stdout + done.stderr
    assert not [path for path in (folder / "out").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_the_servers_times_are_what_counts(measured):
    folder, _ = measured
    for run in results.load(folder / "out").measured:
        assert run.prompt_s == pytest.approx(0.5 + 0.001 * run.prompt_tokens)
        assert run.decode_tok_s == pytest.approx(20)


def test_without_out_it_goes_below_results(tmp_path):
    with SimulatedServer() as server:
        done = bench(tmp_path, server.url, "--lengths", "32", "--runs", "1", "--answer-tokens", "4")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("results/127.0.0.1_*/*Z")
    assert (folder / "report.html").exists()
    assert done.stdout.startswith("| prompt (tokens) |")


def test_a_folder_is_not_written_over(measured):
    folder, _ = measured
    with SimulatedServer() as server:
        done = bench(folder, server.url, "--out", "out")
    assert done.returncode == 2
    assert done.stderr == (
        "moehost: --out: out has a benchmark; name another folder, or go on with it by --resume out\n"
    )


def test_interrupted_it_keeps_what_it_has_and_goes_on(tmp_path):
    with SimulatedServer() as server:
        server.hangs = {4}
        running = subprocess.Popen(
            command(server.url, *SHORT, "--out", "out"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        while len(server.asked) < 5:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=20)
        before = results.load(tmp_path / "out")
        resumed = bench(tmp_path, server.url, "--resume", "out")
    assert running.returncode == 130
    assert "moehost: stopped: 3 of 8 runs; go on with --resume out" in said
    assert len(before.measured) == 3
    assert (tmp_path / "out/report.html").exists()
    assert resumed.returncode == 0, resumed.stderr
    after = results.load(tmp_path / "out")
    assert after.measured[:3] == before.measured
    assert len({(run.block, run.prompt_tokens) for run in after.measured}) == len(after.measured) == 8
    # It was warmed up anew, since the server may have slept.
    assert sum(run.kind == "warm_up" for run in after.runs) == 2


def test_going_on_with_another_server_is_refused(tmp_path):
    with SimulatedServer() as server:
        server.fails = {2, 3, 4}
        first = bench(tmp_path, server.url, *SHORT, "--out", "out")
        with SimulatedServer(openai=True) as other:
            done = bench(tmp_path, other.url, "--resume", "out")
    assert first.returncode == 1
    assert (
        "gives no answer: HTTP status 500: the model is on fire: 1 of 8 runs; go on with --resume out" in first.stderr
    )
    assert done.returncode == 2
    assert "--resume: out was measured with another api, model; begin another benchmark" in done.stderr


def test_going_on_with_a_whole_one_is_refused(measured):
    folder, _ = measured
    done = bench(folder, "http://127.0.0.1:9", "--resume", "out")
    assert (done.returncode, done.stderr) == (
        2,
        "moehost: --resume: all its runs are there; begin another one without --resume\n",
    )


def test_slower_than_before_ends_with_1(tmp_path):
    with SimulatedServer() as server:
        first = bench(tmp_path, server.url, *SHORT, "--against", "last")
        same = bench(tmp_path, server.url, *SHORT, "--against", "last", "--out", "results/same")
        server.decode_s *= 1.1
        slower = bench(tmp_path, server.url, *SHORT, "--against", "last")
    assert first.returncode == same.returncode == 0, first.stderr + same.stderr
    assert "there is none in" in first.stderr
    assert "not distinguishable (4 blocks before, 4 after, tolerance 3%)" in same.stderr
    assert slower.returncode == 1
    assert "decode                    0.909   0.909 to 0.909   slower" in slower.stderr
    assert slower.stderr.endswith("moehost: slower than before, by more than 3%\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("epyc",), 2, "epyc: write an address such as http://127.0.0.1:8080, or a host as @epyc"),
        (("http://127.0.0.1:9",), 1, "http://127.0.0.1:9: http://127.0.0.1:9 does not answer: "),
        (("http://127.0.0.1:9", "--service", "a"), 2, "--service: belongs to @HOST; an address has one server"),
        (("http://127.0.0.1:9", "--against", "none"), 2, "--against: none: there is no such file; give a folder"),
        (("http://127.0.0.1:9", "--lengths", "5,x"), 2, "'5,x' is no list of tokens; write e.g. 512,4096"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, code, sentence):
    done = bench(tmp_path, *arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_what_the_owner_needs_is_judged(tmp_path):
    with SimulatedServer() as server:
        done = bench(tmp_path, server.url, *SHORT, "--need-decode", "30", "--json")
    found = json.loads(done.stdout)["daily_use"]
    assert found["needs"]["decode_tok_s"] == 30
    assert found["verdict"] == "too slow"


def test_the_last_of_a_series_has_runs(tmp_path):
    for name in ("2026-01-01T00-00-00Z", "2026-01-02T00-00-00Z", "2026-01-03T00-00-00Z"):
        (tmp_path / name).mkdir()
    with SimulatedServer() as server:
        bench(tmp_path, server.url, *SHORT, "--out", "2026-01-01T00-00-00Z")
    (tmp_path / "2026-01-02T00-00-00Z/runs.jsonl").write_text("")
    assert results.last(tmp_path, tmp_path / "none") == tmp_path / "2026-01-01T00-00-00Z"
    assert results.last(tmp_path, tmp_path / "2026-01-01T00-00-00Z") is None


def test_series_have_names_that_can_be_folders():
    assert results.series("@podman/moehost-sandbox", "tiny") == Path("results/podman_moehost-sandbox/tiny")
    assert results.series("[::1]:8080/v1") == Path("results/1_8080_v1")


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(RunsError, match="give a folder that `moehost bench` has made"):
        results.load(tmp_path)
