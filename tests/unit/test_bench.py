"""A benchmark of a simulated server: what is asked, what counts, and what is made again."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehost.bench import LENGTHS, Bench, BenchError, Job, lengths, order
from moehost.client import Client
from moehost.runs import Run, RunsError, Session, line, lines, parse
from tests.fixtures.node import ROOT
from tests.fixtures.simulated_server import KEY, SimulatedServer

TEXT = (ROOT / "templates/bench/prose.txt").read_text()


def measured(server, **job):
    """All runs of a job, small unless it says otherwise."""
    job = {"lengths": [32, 64], "runs": 4, "answer_tokens": 8, "timeout_s": 1, **job}
    return list(Bench(Job(server.url, **job), Client(server.url), TEXT).run())


def kinds(runs):
    """How many runs of each kind."""
    return dict(Counter(run.kind for run in runs))


def test_28_runs_are_7_lengths_by_4():
    with SimulatedServer() as server:
        runs = measured(server, lengths=[], runs=28)
    counted = [run for run in runs if run.kind == "measured"]
    assert kinds(runs) == {"warm_up": 2, "measured": 28}
    assert set(Counter(run.prompt_tokens for run in counted).values()) == {4}
    assert len({run.prompt_tokens for run in counted}) == 7
    assert all(run.prompt_n == run.prompt_tokens for run in counted)


def test_the_longest_prompt_warms_up_first():
    with SimulatedServer() as server:
        runs = measured(server, lengths=[32, 64, 128])
    assert [run.prompt_tokens for run in runs if run.kind == "warm_up"] == [128, 32]


def test_the_usual_lengths_lie_on_both_sides_of_the_threshold():
    found = lengths(Job("", threshold=410), None)
    assert set(LENGTHS) < set(found)
    assert sum(each < 410 for each in found) == 1
    assert [each for each in found if 300 < each < 512] == [384, 436]


@given(st.integers(30, 40000), st.sampled_from([2, 8]), st.none() | st.integers(1, 40000))
def test_the_usual_lengths_fit_and_reach_far(room, answer_tokens, threshold):
    found = lengths(Job("", answer_tokens=answer_tokens, threshold=threshold), room)
    assert found == sorted(set(found))
    assert found[0] >= 16 and found[-1] + answer_tokens < room
    assert found[-1] == max(LENGTHS) or found[-1] > 0.9 * (room - answer_tokens - 1) or (threshold or 0) > found[-2]


def test_depths_come_on_top():
    assert lengths(Job("", lengths=[512], depths=[65536]), None) == [512, 65536]


@pytest.mark.parametrize(("job", "room"), [(Job("", depths=[65536]), 32768), (Job("", lengths=[100]), 600)])
def test_lengths_beyond_the_servers_room_are_refused(job, room):
    with pytest.raises(BenchError, match=f"are more than the {room} that the server has room for"):
        lengths(job, room)


def test_no_room_at_all():
    with pytest.raises(BenchError, match="ask for shorter answers than 512"):
        lengths(Job(""), 512)


@given(st.lists(st.integers(1, 100), unique=True, min_size=1, max_size=9), st.integers(1, 40), st.integers())
def test_each_block_has_each_length_once(lengths, runs, seed):
    places = order(lengths, runs, seed)
    assert len(places) == runs
    assert len(set(places)) == runs
    assert places == order(lengths, runs, seed)
    whole = runs // len(lengths)
    assert Counter(length for block, length in places if block < whole) == dict.fromkeys(lengths, whole) or not whole


def test_another_seed_is_another_order():
    assert order(LENGTHS, 28, 0) != order(LENGTHS, 28, 1)


def test_no_prompt_is_sent_twice():
    with SimulatedServer(openai=True) as server:
        measured(server)
        measured(server)
    prompts = [body["prompt"].splitlines()[0] for body in server.asked]
    assert len(set(prompts)) == len(prompts) or len({body["prompt"] for body in server.asked}) == len(prompts)


def test_without_tokens_a_length_is_met_by_characters():
    with SimulatedServer(openai=True) as server:
        runs = measured(server, lengths=[100, 1000], runs=2, warm_ups=0)
    assert kinds(runs) == {"measured": 2}
    assert all(abs(run.prompt_n - run.prompt_tokens) <= 0.1 * run.prompt_tokens for run in runs)
    assert {run.clock for run in runs} == {"client"}


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("ends_early", "discarded", "the answer ended after 4 tokens of 8"),
        ("breaks_off", "failed", "out of memory"),
        ("hangs", "failed", "nothing for 1 s"),
        ("fails", "failed", "HTTP status 500: the model is on fire"),
    ],
)
def test_what_does_not_count_is_kept_and_made_again(fault, kind, reason):
    with SimulatedServer() as server:
        getattr(server, fault).add(3)
        runs = measured(server)
    assert kinds(runs) == {"warm_up": 2, kind: 1, "measured": 4}
    assert runs[3].reason == reason
    assert (runs[3].block, runs[3].prompt_tokens) == (runs[4].block, runs[4].prompt_tokens)


def test_a_prompt_from_the_cache_does_not_count():
    with SimulatedServer() as server:
        server.cached[2] = 10
        runs = measured(server)
    assert runs[2].kind == "discarded"
    assert runs[2].reason == f"the server computed {runs[2].prompt_tokens - 10} tokens of {runs[2].prompt_tokens}"
    assert kinds(runs)["measured"] == 4


def test_three_failures_in_a_row_end_it():
    with SimulatedServer() as server:
        server.fails.update(range(4, 99))
        with pytest.raises(BenchError, match="gives no answer: HTTP status 500: the model is on fire"):
            measured(server)
    assert len(server.asked) == 7


def test_what_is_done_is_not_made_again():
    with SimulatedServer() as server:
        job = Job(server.url, lengths=[32, 64], runs=4, answer_tokens=8)
        whole = list(Bench(job, Client(server.url), TEXT).run())
        done = [[run.block, run.prompt_tokens] for run in whole if run.kind == "measured"][:3]
        rest = measured(server, done=done)
        nothing = measured(server, done=[list(place) for place in order([32, 64], 4, 0)])
    assert kinds(rest) == {"warm_up": 2, "measured": 1}
    last = next(run for run in rest if run.kind == "measured")
    assert [last.block, last.prompt_tokens] not in done
    assert nothing == []


def test_the_program_prints_what_it_measures(tmp_path):
    with SimulatedServer(key=KEY) as server:
        job = Job(server.url, lengths=[32], runs=2, answer_tokens=4, warm_ups=0)
        (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
        (tmp_path / "prose.txt").write_text(TEXT)
        (tmp_path / "api-keys").write_text(f"# mine\n{KEY}\n")
        command = [sys.executable, "-m", "moehost.bench", str(tmp_path / "job.json")]
        environment = {"CREDENTIALS_DIRECTORY": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    first, *rest = done.stdout.splitlines()
    assert json.loads(first)["order"] == {"lengths": [32], "runs": 2, "answer_tokens": 4, "warm_ups": 0, "seed": 0}
    assert [Run(**json.loads(each)).kind for each in rest] == ["measured", "measured"]
    assert KEY not in done.stdout + done.stderr


def test_the_program_says_why_it_can_not(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(asdict(Job("http://127.0.0.1:9"))))
    (tmp_path / "prose.txt").write_text(TEXT)
    command = [sys.executable, "-m", "moehost.bench", str(tmp_path / "job.json")]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not answer" in json.loads(done.stdout)["refusal"]


def a_run(**values):
    return Run(**{"kind": "measured", "block": 0, "prompt_tokens": 8, "answer_tokens": 4, "started_s": 1.0, **values})


def test_a_file_of_runs_is_read_as_it_was_written():
    session = Session({"lengths": [8]}, {"cpu": "one"}, {"engine": "ik"}, (a_run(prompt_n=8), a_run(kind="failed")))
    assert parse(lines(session), "there") == session
    assert len(session.measured) == 1


def test_a_line_that_was_cut_off_is_left_out():
    session = Session({"lengths": [8]}, {}, None, (a_run(),))
    assert parse([*lines(session), line(a_run())[:20]], "there") == session


@pytest.mark.parametrize(
    "text", [[], ["{}\n"], ["no json\n"], ['{"order": {}, "fingerprint": {}, "plan": null}\n', "{}\n"]]
)
def test_a_file_without_runs_is_refused(text):
    with pytest.raises(RunsError, match="there: holds no runs of a benchmark"):
        parse(text, "there")


def test_the_first_token_of_an_answer_came_with_the_prompt():
    assert a_run(predicted_n=101, decode_s=10.0).decode_tok_s == 10
