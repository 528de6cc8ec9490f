"""What is launched for a probe, what llama-bench is told, and what is made of its answers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from moehost import launches, llama_bench
from moehost import settings as inventory
from moehost.engine import known_flags
from moehost.launch import Ended
from moehost.llama_bench import BenchError
from moehost.probes import Measured, Probe
from moehost.space import Choice, Space
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f

FOLDER = "/opt/engine/bin"


def space(cards: int, dialect: str = "ik", mtp: bool = False) -> Space:
    wish = {"name": "q", "model": {"name": "q", "source": "file:///q.gguf"}, "context": 32768, "ubatch": 2048}
    read = inventory.read({"services": [wish]}).services[0]
    found = as_set(qwen35_397b(mtp=mtp))
    return Space(read, "/q.gguf", found, epyc_9175f(cards), dialect, rounds=3)  # type: ignore[arg-type]


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


class TestLlamaBench:
    def test_experts_are_placed_as_the_server_places_them(self) -> None:
        made = space(1)
        argv = llama_bench.load_arguments(made.plan(made.current).arguments, "ik")
        rules = value(argv, "-ot").split(",")
        assert rules[0].endswith("=CUDA0")
        # It has no --cpu-moe; the first rule that is found decides.
        assert rules[-1] == llama_bench.EXPERTS_ON_CPU
        assert value(argv, "-ngl") == "99"
        assert (value(argv, "-fa"), value(argv, "-mmp")) == ("1", "0")

    def test_llama_cpp_separates_rules_and_shares_in_its_own_way(self) -> None:
        made = space(2, "llama.cpp")
        argv = llama_bench.load_arguments(made.plan(made.current).arguments, "llama.cpp")
        assert len(value(argv, "-ot").split(";")) == 3
        assert "," not in value(argv, "-ot") + value(argv, "-ts")
        assert (value(argv, "-fa"), value(argv, "-lm")) == ("on", "none")

    def test_the_last_flag_wins_as_in_the_server(self) -> None:
        given = ["-m", "x", "-cuda", "offload-batch-size=12", "-cuda", "offload-batch-size=8"]
        assert value(llama_bench.load_arguments(given, "ik"), "-cuda") == "offload-batch-size=8"

    def test_debians_llama_bench_knows_all_flags(self) -> None:
        made = space(0, "llama.cpp")
        help_text = (Path(__file__).parents[1] / "fixtures/help/llama-bench-0.7.0.txt").read_text()
        argv = [
            *llama_bench.load_arguments(made.plan(made.current).arguments, "llama.cpp"),
            *llama_bench.test_arguments([1], [512], 2048, 64, 8),
        ]
        assert {word for word in argv if word.startswith("-")} <= known_flags(help_text)

    @pytest.mark.parametrize("text", ["", "[", "[0]", "[{}]", '[{"n_prompt": 1, "n_gen": 0, "n_threads": 1}]'])
    def test_output_that_was_cut_off_is_no_measurement(self, text: str) -> None:
        with pytest.raises(BenchError):
            assert llama_bench.rows(text) == "nothing"


class TestRuns:
    def test_threads_alternate_in_one_load(self) -> None:
        made = space(0)
        choices = (made.current, replace(made.current, threads=12))
        (run,) = launches.runs(made, Probe("threads", "bench", choices), 0, FOLDER, None)
        rounds = [int(each) for each in value(run.argv, "-t").split(",")]
        assert len(rounds) == 9
        assert [sorted(rounds[at : at + 3]) for at in (0, 3, 6)] == [[12, 13, 16]] * 3

    def test_the_seed_decides_the_order(self) -> None:
        def orders(seed: int) -> list[str]:
            made = replace(space(0), seed=seed, rounds=8)
            probe = Probe("threads", "bench", (made.current, replace(made.current, threads=12)))
            return [value(launches.runs(made, probe, number, FOLDER, None)[0].argv, "-t") for number in (0, 1)]

        assert orders(1) == orders(1) != orders(2)
        assert len(set(orders(1))) == 2

    def test_dear_loads_go_there_and_back(self) -> None:
        made = space(1)
        choices = (made.current, replace(made.current, kv_type="q8_0"))
        runs = launches.runs(made, Probe("kv-type", "bench", choices), 0, FOLDER, 5.0)
        assert [value(run.argv, "-ctk") for run in runs] == ["f16", "q8_0", "q8_0", "f16"]
        # Three rounds in all: two there, one back.
        assert [len(value(run.argv, "-t").split(",")) for run in runs] == [4, 4, 2, 2]

    def test_a_slow_disk_gets_more_time(self) -> None:
        made = space(1)
        probe = Probe("threads", "bench", (made.current,))
        fast, slow, unknown = (launches.runs(made, probe, 0, FOLDER, each)[0] for each in (10.0, 1.0, None))
        assert fast.timeout_s < slow.timeout_s < unknown.timeout_s

    def test_drafts_are_asked_of_a_server_without_keys(self) -> None:
        made = space(1, mtp=True)
        choices = (made.current, replace(made.current, draft_tokens=2))
        off, on = launches.runs(made, Probe("mtp", "server", choices), 0, FOLDER, None)
        assert "--api-key-file" not in off.argv and "--port" not in off.argv
        assert "--spec-type" not in off.argv and value(on.argv, "--spec-type") == "mtp:n_max=2"
        assert len({each["prompt"] for each in on.requests}) == made.rounds + 1

    def test_the_layer_of_drafts_is_in_the_ledger(self) -> None:
        made = space(1, mtp=True)
        with_drafts = made.plan(replace(made.current, draft_tokens=1)).placement.experts
        assert len(with_drafts["CUDA0"]) < len(made.plan(made.current).placement.experts["CUDA0"])


def ended(load: str, **what: object) -> dict[str, object]:
    return asdict(Ended(**{**asdict(Ended(load, "ended", 0, "", "", 1.0)), **what}))  # type: ignore[arg-type]


class TestOutcome:
    @staticmethod
    def row(choice: Choice, is_decode: bool, threads: int, *seconds: float) -> dict[str, object]:
        tokens = {"n_prompt": 0 if is_decode else 4096, "n_gen": 128 if is_decode else 0}
        samples = [int(each * 1e9) for each in seconds]
        return {"n_ubatch": choice.ubatch, "n_threads": threads, "type_k": "f16", "samples_ns": samples, **tokens}

    def test_prompts_and_decode_have_threads_of_their_own(self) -> None:
        made = space(0)
        here, other = made.current, replace(made.current, threads=12)
        rows = [self.row(here, False, each, float(each)) for each in (12, 13, 16)]
        rows += [self.row(here, True, each, each * 1.28) for each in (12, 13, 16)]
        answer = ended(launches.load_of(made, here), output=json.dumps(rows))
        found = launches.outcome(made, Probe("threads", "bench", (here, other)), [answer]).found
        assert found == (Measured((16.0,), (pytest.approx(0.13),)), Measured((16.0,), (pytest.approx(0.12),)))

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ({"status": -9}, "out of memory: the kernel killed it"),
            ({"status": 1, "said": "x\nCUDA error: out of memory\ny"}, "out of memory: CUDA error: out of memory"),
            ({"status": None, "why": "late", "elapsed_s": 300.0}, "no result after 300 s"),
            ({"status": None, "why": "port", "said": "port 8080 is taken (in use)"}, "port 8080 is taken (in use)"),
            ({"status": 1, "said": "error: invalid parameter for argument: -x"}, "refused: error: invalid parameter"),
            ({"status": 0, "output": "[]"}, "no tokens"),
            ({"status": 3, "said": ""}, "ended with status 3: it says nothing"),
        ],
        ids=str,
    )
    def test_failures_are_findings(self, what: dict[str, object], words: str) -> None:
        made = space(0)
        answer = ended(launches.load_of(made, made.current), **what)
        (found,) = launches.outcome(made, Probe("threads", "bench", (made.current,)), [answer]).found
        assert isinstance(found, str)
        assert found.startswith(words)

    def test_a_failure_of_one_load_is_none_of_another(self) -> None:
        made = space(1)
        other = replace(made.current, kv_type="q8_0")
        rows = [self.row(made.current, False, 16, 2.0), self.row(made.current, True, 13, 6.4)]
        answers = [
            ended(launches.load_of(made, made.current), output=json.dumps(rows)),
            ended(launches.load_of(made, other), status=-9),
        ]
        found = launches.outcome(made, Probe("kv-type", "bench", (made.current, other)), answers).found
        assert found == (Measured((2.0,), (pytest.approx(0.05),)), "out of memory: the kernel killed it")


def test_an_estimate_grows_with_the_load() -> None:
    made = replace(space(1), branches=("placement", "kv-type"), kv_types=("q8_0",))
    assert launches.expected_s(made, 10.0) < launches.expected_s(made, 1.0)
