"""Placements: the published figures, the two command lines in wide use, and what must hold for every machine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moehost import split
from moehost.engine import offload_arguments
from moehost.fill import ROUNDING_MIB, Filling, Overdrawn
from moehost.hardware import Node
from moehost.ledger import MIB, Memory, activation_bytes, compute_bytes
from moehost.model import Model
from moehost.placement import Placement
from moehost.planner import DoesNotFit, _decode_threads, _Planner, place
from moehost.request import PlacementError, Request
from moehost.rules import Rule, RuleError, experts_rule
from moehost.speed import PUBLISHED
from tests.unit import architectures as published
from tests.unit.architectures import Shape
from tests.unit.full_size import Layout, as_set, qwen35_397b
from tests.unit.machines import card, epyc_9175f, with_cards

FIXTURES = Path(__file__).parents[1] / "fixtures"
ENGINE_LOG = FIXTURES / "ik_llama-dry-run-397b-iq4_nl-ctx262144.log"


def model_of(layout: Layout) -> Model:
    return Model.from_gguf(as_set(layout))


QWEN = model_of(qwen35_397b())
QWEN_KSS = model_of(qwen35_397b("IQ4_KSS"))
REPORT = Request(context=262144, ubatch=2048)


def counts(placement: Placement) -> list[int]:
    """Layers of experts per device, the CPU last."""
    return [len(layers) for layers in placement.experts.values()]


class TestFigures:
    def test_one_card(self) -> None:
        placement = place(QWEN, epyc_9175f(1), REPORT)
        assert counts(placement) == [21, 39]
        prediction = placement.to_json("ik", [])["prediction"]
        assert 23.9 <= prediction["decode_low"] < prediction["decode_tok_s"] < prediction["decode_high"] <= 25.2

    def test_one_card_with_smaller_experts(self) -> None:
        assert 23 <= counts(place(QWEN_KSS, epyc_9175f(1), REPORT))[0] <= 26

    def test_two_cards(self) -> None:
        placement = place(QWEN, epyc_9175f(2), REPORT)
        assert 45 <= sum(counts(placement)[:2]) <= 47
        assert 25.8 <= placement.decode.expected <= 29.3

    def test_all_experts_on_the_cpu(self) -> None:
        placement = place(QWEN, epyc_9175f(1), dataclasses.replace(REPORT, placement="cpu-moe"))
        assert placement.to_json("ik", [])["prediction"]["decode_tok_s"] == 22.5
        assert any("74192 MiB stay idle" in line for line in placement.warnings)

    def test_experts_of_3_4_bits_fit_on_two_cards(self) -> None:
        small = dataclasses.replace(
            QWEN,
            layers=tuple(
                dataclasses.replace(layer, routed_bytes=int(layer.routed_bytes * 0.76)) for layer in QWEN.layers
            ),
            parts=tuple(
                dataclasses.replace(p, size_bytes=int(p.size_bytes * 0.76)) if p.role == "routed" else p
                for p in QWEN.parts
            ),
        )
        placement = place(small, epyc_9175f(2), dataclasses.replace(REPORT, context=32768))
        assert counts(placement) == [len(placement.experts["CUDA0"]), len(placement.experts["CUDA1"]), 0]
        assert placement.offload.tensor_overrides == () and not placement.offload.cpu_moe


class TestLedgerAgainstTheEngine:
    """Against the log of ik_llama.cpp's --dry-run of the full model on a machine without a GPU."""

    @pytest.fixture
    def printed(self) -> dict[str, float]:
        sizes = re.findall(r"(CPU buffer|KV self|CPU compute buffer) size += +([\d.]+) MiB", ENGINE_LOG.read_text())
        return {name: float(size) for name, size in sizes}

    def test_buffers(self, printed: dict[str, float]) -> None:
        (row,) = place(QWEN, epyc_9175f(0), REPORT).rows
        assert row.dense_mib + row.experts_mib == pytest.approx(printed["CPU buffer"], rel=0.0001)
        assert row.kv_mib == printed["KV self"] == 7680
        assert row.state_mib == 187  # 7866.33 - 7680.00 MiB
        assert row.compute_mib == printed["CPU compute buffer"] == 1972

    def test_what_the_engine_weighs_to_split_layers(self) -> None:
        sizes, compute = split.layer_sizes(QWEN, Memory(262144), 2048)
        assert sum(sizes) / MIB == pytest.approx(225882, abs=0.5)
        assert compute / MIB == 544

    def test_published_compute_buffers(self) -> None:
        """Qwen3.6-35B-A3B, experts of 4.9 bits on the CPU, ubatch 4096, context 150000."""
        shape = Shape("qwen35moe", 40, 2048, 16, 2, 256, 248320, experts=256, used=8, expert_ff=512, shared_ff=512)
        model = model_of(dataclasses.replace(shape, delta=(16, 32, 128)).layout())
        carried = int(256 * 3 * 2048 * 512 * 4.9 / 8)
        assert compute_bytes(model, Memory(150000), 4096, carried) / MIB == pytest.approx(3976, rel=0.001)
        without_logits = dataclasses.replace(model, vocabulary=0)
        assert compute_bytes(without_logits, Memory(150000), 4096, carried) / MIB == pytest.approx(1982, rel=0.03)
        assert activation_bytes(model, 4096) / MIB == 384

    def test_windows_save_memory_in_llama_cpp_alone(self) -> None:
        model = model_of(published.GPT_OSS_120B.layout("MXFP4", "BF16"))
        request = Request(context=131072, ubatch=2048)
        ik = place(model, epyc_9175f(1), request).rows[0].kv_mib
        mainline = place(model, epyc_9175f(1), dataclasses.replace(request, dialect="llama.cpp")).rows[0].kv_mib
        assert ik == 36 * 131072 * 2048 // MIB
        assert mainline == 18 * (131072 + 2304) * 2048 // MIB


class TestPresets:
    """The two command lines of the published report, with [.] for the dot and merged tensors included."""

    def test_one_gpu(self) -> None:
        offload = place(QWEN, epyc_9175f(1), Request("cpu-moe", context=262144)).offload
        expected = (
            "-c 262144 -np 1 -b 2048 -ub 2048 -t 13 -tb 24 -ctk f16 -ctv f16 -fa on -ngl 99 --cpu-moe --no-mmap"
        )
        assert " ".join(offload_arguments(offload, "ik")) == expected

    def test_two_gpus(self) -> None:
        request = Request(
            "tensor-split", context=135168, kv_type_k="q8_0", kv_type_v="q8_0", gpu_experts=((0, 1, 2), (47, 48))
        )
        placement = place(QWEN, epyc_9175f(2), request)
        rules = (
            "blk[.](0|1|2)[.]ffn_(gate_up|gate|up|down)_exps.*=CUDA0,"
            "blk[.](47|48)[.]ffn_(gate_up|gate|up|down)_exps.*=CUDA1"
        )
        assert (
            offload_arguments(placement.offload, "ik")
            == (
                "-c 135168 -np 1 -b 2048 -ub 2048 -t 24 -tb 24 -ctk q8_0 -ctv q8_0 -fa on -ngl 999 "
                f"-ot {rules} --cpu-moe --no-mmap"
            ).split()
        )
        assert placement.experts["CUDA0"] == (0, 1, 2) and placement.experts["CUDA1"] == (47, 48)
        assert placement.rows[0].kv_mib + placement.rows[1].kv_mib == 2104

    def test_they_warn_of_more_threads_than_cores(self) -> None:
        warnings = place(QWEN, epyc_9175f(1), Request("cpu-moe", context=262144)).warnings
        assert any(line.startswith("threads_batch: 24 on 16 cores") for line in warnings)

    def test_what_is_given_replaces_the_presets_numbers(self) -> None:
        offload = place(QWEN, epyc_9175f(1), Request("cpu-moe", context=4096, ubatch=4096, threads=8)).offload
        assert (offload.ubatch, offload.batch, offload.threads, offload.threads_batch) == (4096, 4096, 8, 8)

    def test_layers_without_experts_are_named(self) -> None:
        request = Request("tensor-split", context=8192, gpu_experts=((59, 60),))
        assert any("layer 60: no experts that are loaded" in w for w in place(QWEN, epyc_9175f(1), request).warnings)

    def test_experts_away_from_their_layer_are_named(self) -> None:
        request = Request("tensor-split", context=8192, gpu_experts=((), (0, 1)))
        assert any(
            w.startswith("layer 0, 1: experts on another GPU") for w in place(QWEN, epyc_9175f(2), request).warnings
        )


class TestManual:
    def test_rules_are_taken_as_they_are(self) -> None:
        rules = ("blk[.][0-9][.]ffn_.*_exps=CUDA0", "exps=CPU")
        placement = place(QWEN, epyc_9175f(1), Request("manual", context=8192, rules=rules))
        assert placement.offload.tensor_overrides == rules and not placement.offload.cpu_moe
        assert placement.experts["CUDA0"] == tuple(range(10))

    def test_the_first_rule_wins(self) -> None:
        rules = ("exps=CPU", "blk[.][0-9][.]ffn_.*_exps=CUDA0")
        placement = place(QWEN, epyc_9175f(1), Request("manual", context=8192, rules=rules))
        assert placement.experts == {"CUDA0": (), "CPU": tuple(range(60))}

    def test_torn_layers_and_idle_rules_are_named(self) -> None:
        rules = ("blk[.]3[.]ffn_up_exps=CUDA0", "blk[.]99[.]=CUDA0")
        request = Request("manual", context=8192, rules=rules, cpu_moe=True)
        warnings = place(QWEN, epyc_9175f(1), request).warnings
        assert any(w.startswith("layer 3: experts on several devices") for w in warnings)
        assert any("rule blk[.]99[.]=CUDA0: matches no tensor" in w for w in warnings)

    def test_dense_tensors_can_be_moved_too(self) -> None:
        request = Request("manual", context=8192, rules=("shexp=CPU", "token_embd=CUDA0"), cpu_moe=True)
        rows = place(QWEN, epyc_9175f(1), request).rows
        assert rows[1].dense_mib == pytest.approx(60 * 13385728 / MIB, abs=1)

    def test_too_much_is_refused_all_the_same(self) -> None:
        with pytest.raises(DoesNotFit, match=r"^CUDA0 lacks \d+ MiB; it fits with placement auto"):
            place(QWEN, epyc_9175f(1), Request("manual", context=8192, rules=("nothing=CPU",)))


class TestAuto:
    def test_long_prompts_get_a_larger_ubatch_and_short_ones_more_layers(self) -> None:
        def chosen(prompt_tokens: int, answer_tokens: int) -> Placement:
            request = Request(context=262144, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
            return place(QWEN, epyc_9175f(1), request)

        chat, documents = chosen(300, 4000), chosen(32768, 200)
        assert chat.offload.ubatch < documents.offload.ubatch == documents.offload.batch == 8192
        assert counts(chat)[0] > counts(documents)[0]
        assert any("ubatch 8192 is predicted fastest" in line for line in documents.why)

    def test_short_prompts_reach_the_gpu_from_the_break_even_on(self) -> None:
        placement = place(QWEN, epyc_9175f(1), REPORT)
        assert placement.offload.cuda_params == "offload-batch-size=10"
        assert placement.prompts.threshold == 512
        default = place(QWEN, epyc_9175f(1), dataclasses.replace(REPORT, placement="cpu-moe"))
        assert default.offload.cuda_params is None and default.prompts.threshold == 1639

    def test_llama_cpp_is_told_by_its_environment(self) -> None:
        placement = place(QWEN, epyc_9175f(1), dataclasses.replace(REPORT, dialect="llama.cpp"))
        assert placement.offload.cuda_params is None
        assert placement.env["GGML_OP_OFFLOAD_MIN_BATCH"] == str(placement.prompts.threshold)

    def test_a_given_batch_bounds_the_ubatch(self) -> None:
        request = Request(context=262144, batch=2048, prompt_tokens=32768)
        offload = place(QWEN, epyc_9175f(1), request).offload
        assert (offload.batch, offload.ubatch) == (2048, 2048)

    def test_threads_stay_within_the_cores(self) -> None:
        for cores in (1, 2, 4, 16, 64):
            offload = place(QWEN, with_cards(card(), cores=cores), REPORT).offload
            assert 1 <= offload.threads <= offload.threads_batch <= cores
        assert place(QWEN, epyc_9175f(1), REPORT).offload.threads == 13

    def test_unequal_cards_are_filled_by_what_they_hold(self) -> None:
        placement = place(QWEN, with_cards(card(97887), card(32607)), REPORT)
        first, second, _ = counts(placement)
        assert first >= 20 and 3 <= second <= 7
        assert all(row.free_mib < 3456 for row in placement.rows[:2])

    def test_a_card_too_small_for_anything_stays_empty(self) -> None:
        placement = place(QWEN, with_cards(card(97887), card(8000)), REPORT)
        assert counts(placement)[1] == 0 and set(placement.layer_devices) == {"CUDA0"}
        assert placement.rows[1].dense_mib == placement.rows[1].kv_mib == 0

    def test_a_slow_card_takes_no_experts(self) -> None:
        assert counts(place(QWEN, with_cards(card(bandwidth_gb_s=200.0)), REPORT)) == [0, 60]

    def test_a_small_machine_gets_smaller_caches(self) -> None:
        roomy, tight = place(QWEN, epyc_9175f(1), REPORT), place(QWEN, epyc_9175f(1, memory_mib=145000), REPORT)
        assert (roomy.offload.prompt_cache_mib, roomy.offload.checkpoints) == (8192, 32)
        assert tight.offload.prompt_cache_mib < 8192 and tight.rows[-1].free_mib >= 0

    def test_dense_models_need_no_rules(self) -> None:
        placement = place(model_of(published.LLAMA3_70B.layout()), epyc_9175f(2), Request(context=32768))
        assert set(placement.experts.values()) == {()}
        assert placement.offload.tensor_overrides == () and not placement.offload.cpu_moe
        assert placement.offload.split_mode == "layer" and len(placement.offload.tensor_split) == 2

    def test_the_mtp_layer_is_loaded_on_demand_alone(self) -> None:
        model = model_of(qwen35_397b(mtp=True))
        without = place(model, epyc_9175f(1), REPORT)
        assert without.experts == place(QWEN, epyc_9175f(1), REPORT).experts
        with_mtp = place(model, epyc_9175f(1), dataclasses.replace(REPORT, mtp=True))
        assert 19 <= counts(with_mtp)[0] < 21
        assert with_mtp.rows[0].kv_mib == 7680 * 17 // 15  # the layer is in the caches of both contexts

    def test_the_faster_link_should_be_the_first(self) -> None:
        placement = place(QWEN, with_cards(card(pcie_gb_s=13.0), card()), REPORT)
        assert any(w.startswith("CUDA0: carries the experts") for w in placement.warnings)

    def test_margins_can_be_corrected_per_card(self) -> None:
        request = dataclasses.replace(REPORT, margins_mib=(1024, 8000))
        assert [row.margin_mib for row in place(QWEN, epyc_9175f(2), request).rows[:2]] == [1024, 8000]

    def test_the_same_facts_give_the_same_plan(self) -> None:
        again = place(model_of(qwen35_397b()), epyc_9175f(2), REPORT)
        assert again == place(QWEN, epyc_9175f(2), REPORT)


class TestRefusals:
    def test_it_says_what_lacks_and_what_fits(self) -> None:
        with pytest.raises(DoesNotFit) as caught:
            place(QWEN, with_cards(card(20000)), dataclasses.replace(REPORT, ubatch=4096))
        refusal = caught.value
        assert refusal.device == "CUDA0" and refusal.lacking_mib > 0
        assert refusal.nearest[-1].startswith("context ")
        context = int(refusal.nearest[-1].split()[1])
        request = dataclasses.replace(REPORT, ubatch=4096, context=context)
        assert place(QWEN, with_cards(card(20000)), request)
        with pytest.raises(DoesNotFit):
            place(QWEN, with_cards(card(20000)), dataclasses.replace(request, context=context + 1024))

    def test_each_hint_alone_is_enough(self) -> None:
        request = dataclasses.replace(REPORT, placement="cpu-moe", ubatch=8192)
        with pytest.raises(DoesNotFit) as caught:
            place(QWEN, with_cards(card(24000)), request)
        assert caught.value.nearest == ("ubatch 2048", "context 162816")
        for change in ({"ubatch": 2048}, {"context": 162816}):
            assert place(QWEN, with_cards(card(24000)), dataclasses.replace(request, **change))

    def test_ram_can_lack_too(self) -> None:
        with pytest.raises(DoesNotFit, match=r"^CPU lacks \d+ MiB; it fits with placement auto"):
            place(QWEN, epyc_9175f(1, memory_mib=200000), dataclasses.replace(REPORT, placement="cpu-moe"))
        with pytest.raises(DoesNotFit, match=r"^CPU lacks \d+ MiB; use a smaller quantisation"):
            place(QWEN, epyc_9175f(0, memory_mib=200000), REPORT)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kv_type_k": "q8"}, "kv_type_k: 'q8' is not known; write q8_0"),
            ({"context": 0}, "context: is 0; give a number above 0"),
            ({"batch": 512}, "ubatch: 2048 is more than the batch of 512"),
            ({"placement": "tensor-split", "gpu_experts": ((0,), (1,))}, "names more GPUs than the machine's 1"),
            ({"placement": "tensor-split", "gpu_experts": ((0, 0),)}, "each layer can be on one GPU only"),
            ({"placement": "cpu-moe", "tensor_split": (0.0,)}, "one share per GPU"),
            ({"tensor_split": (1.0,)}, "placement auto chooses it"),
            ({"rules": ("exps=CPU",)}, "rules: belongs to placement manual"),
            ({"placement": "tensor-split"}, "gpu_experts: placement tensor-split needs it"),
            ({"margins_mib": (-5,)}, "margins_mib: is [-5]"),
            ({"placement": "manual", "rules": ("exps=CUDA1",)}, "has 1 GPU(s), so no CUDA1"),
            ({"mtp": True}, "the file has no multi-token-prediction layer"),
        ],
    )
    def test_nonsense_is_named(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(PlacementError, match=re.escape(message)):
            place(QWEN, epyc_9175f(1), dataclasses.replace(REPORT, **changes))


class TestContract:
    def test_the_plan_has_the_keys_and_the_arithmetic_of_the_contract(self) -> None:
        plan = place(QWEN, epyc_9175f(1), REPORT).to_json("ik", ["-m", "model.gguf"])
        assert json.loads(json.dumps(plan)) == plan
        assert list(plan) == ["engine", "argv", "env", "experts", "ledger", "prediction", "warnings"]
        gpu, cpu = plan["ledger"]
        assert list(gpu) == [
            *("device", "capacity_mib", "dense_mib", "experts_mib", "kv_mib", "state_mib"),
            *("compute_mib", "margin_mib", "free_mib"),
        ]
        assert list(cpu) == ["device", "capacity_mib", "dense_mib", "experts_mib", "cache_mib", "free_mib"]
        for row in plan["ledger"]:
            assert row.pop("capacity_mib") == sum(v for key, v in row.items() if key != "device")
        assert list(plan["prediction"]["prompt_tok_s"]) == ["512", "4096", "16384"]

    @pytest.mark.parametrize("gpus", [0, 1, 2])
    @pytest.mark.parametrize("placement", ["auto", "cpu-moe"])
    def test_the_engine_knows_every_flag(self, gpus: int, placement: Any) -> None:
        known = json.loads((FIXTURES / "ik_llama-options-8337e4cd.json").read_text())["options"]
        arity = {spelling: option["values"] for option in known for spelling in option["spellings"]}
        words = offload_arguments(place(QWEN, epyc_9175f(gpus), Request(placement, context=8192)).offload, "ik")
        while words:
            del words[: 1 + arity[words[0]]]

    def test_the_whole_plan_takes_no_time(self) -> None:
        """`moehost plan` has 1.5 s with the reading of the header; this is five ubatches on two cards."""
        started = time.perf_counter()
        place(QWEN, epyc_9175f(2), Request(context=262144))
        assert time.perf_counter() - started < 0.5


class TestRules:
    def test_ranges(self) -> None:
        assert "([0-9]|1[0-9]|20|21|22)" in experts_rule(range(23), "CUDA0")
        assert "(1|3|99|10[0-3])" in experts_rule([1, 3, 99, 100, 101, 102, 103], "CUDA0")

    @pytest.mark.parametrize(
        "text",
        [
            *("exps", "exps=", "exps=GPU0", "=CPU", "a b=CPU", "a,b=CPU", "a=b=CPU", "a%=CPU", "a$=CPU", r"a\.b=CPU"),
            *("(=CPU", "a)=CPU", "a(b=CPU", "(?:a)=CPU", "()=CPU", "(a|)=CPU", "|a=CPU", "a||b=CPU", "*a=CPU"),
            *(
                "a**=CPU",
                "a*?=CPU",
                "a++=CPU",
                "a{2}=CPU",
                "[]=CPU",
                "[a=CPU",
                "[9-0]=CPU",
                "[[:digit:]]=CPU",
                "a^=CPU",
            ),
        ],
    )
    def test_what_another_regex_engine_may_read_differently_is_refused(self, text: str) -> None:
        with pytest.raises(RuleError, match=r"^rule "):
            Rule.parse(text)

    @pytest.mark.parametrize(
        "text", ["exps=CPU", "^blk[.]([0-9]|1[^0-4])[.]ffn_(gate|up)_exps.+=CUDA1", "a?(b*c)+=CPU"]
    )
    def test_the_rest_is_taken(self, text: str) -> None:
        assert str(Rule.parse(text)) == text

    @given(st.sets(st.integers(0, 511), min_size=1), st.integers(0, 9))
    def test_a_rule_finds_exactly_the_experts_of_its_layers(self, layers: set[int], device: int) -> None:
        text = experts_rule(layers, f"CUDA{device}")
        assert not set(text.partition("=")[0]) & set("\\%$,= ")
        pattern = Rule.parse(text).pattern
        for layer in range(512):
            for part in ("ffn_gate_exps.weight", "ffn_gate_up_exps.weight", "ffn_down_exps.bias"):
                assert bool(pattern.search(f"blk.{layer}.{part}")) == (layer in layers)
            for part in ("ffn_gate_shexp.weight", "ffn_gate_inp.weight", "attn_q.weight", "ffn_down.weight"):
                assert not pattern.search(f"blk.{layer}.{part}")

    @pytest.mark.skipif(not shutil.which("node"), reason="needs a regex engine of ECMAScript, here node's")
    def test_an_engine_of_ecmascript_agrees(self) -> None:
        names = [part.name for part in QWEN.parts] + ["blk.1.ffn_gate_up_exps.weight"]
        groups = [range(1), range(3), range(23), range(34, 58), range(0, 60, 3), [9, 10, 11, 12, 13, 19, 20, 59]]
        rules = [Rule.parse(experts_rule(group, "CUDA0")) for group in groups]
        rules += [Rule.parse(f"{text}=CPU") for text in ("exps", "^blk[.][^0-4]+[.]attn_.*", "(a|b)?l*k[.]5+")]
        script = "const [rs, ns] = JSON.parse(require('fs').readFileSync(0)); "
        script += "console.log(JSON.stringify(rs.map(r => ns.filter(n => new RegExp(r).test(n)))))"
        question = json.dumps([[rule.pattern.pattern for rule in rules], names])
        done = subprocess.run(["node", "-e", script], input=question, capture_output=True, text=True, check=True)
        answers = [[name for name in names if rule.pattern.search(name)] for rule in rules]
        assert json.loads(done.stdout) == answers and all(answers)


class TestSplits:
    @given(st.integers(0, 61), st.integers(0, 61), st.sampled_from([QWEN, QWEN_KSS]))
    def test_shares_give_the_wanted_split_in_both_engines(self, first: int, second: int, model: Model) -> None:
        low, high = sorted((first, second))
        wanted = [0] * low + [1] * (high - low) + [2] * (61 - high)
        sizes, compute = split.layer_sizes(model, Memory(262144), 2048)
        shares = split.shares_by_bytes(sizes, compute, wanted, 3)
        assert split.split_by_bytes(sizes, compute, shares) == wanted
        assert split.split_by_count(60, split.shares_by_count(wanted, 3)) == wanted

    def test_equal_shares_are_split_as_the_engines_do(self) -> None:
        assert split.split_by_count(60, [1, 1]) == [0] * 31 + [1] * 30
        sizes, compute = split.layer_sizes(QWEN, Memory(262144), 2048)
        assert split.split_by_bytes(sizes, compute, [1, 1]) == [0] * 30 + [1] * 31


requests = st.builds(
    Request,
    placement=st.sampled_from(["auto", "auto", "cpu-moe"]),
    context=st.sampled_from([1, 4096, 262144]),
    kv_type_k=st.sampled_from(["f16", "q8_0"]),
    kv_type_v=st.sampled_from(["f16", "q8_0"]),
    parallel=st.integers(1, 4),
    ubatch=st.sampled_from([None, 512, 2048]),
    dialect=st.sampled_from(["ik", "llama.cpp"]),
    prompt_tokens=st.sampled_from([100, 20000]),
)


@st.composite
def models(draw: st.DrawFn, most_layers: int) -> Model:
    """Models of every kind of layout, from some MiB to some hundred GiB."""
    architecture = draw(
        st.sampled_from(["qwen3moe", "qwen3next", "deepseek2", "gpt-oss", "llama4", "llama", "novel"])
    )
    shape = Shape(
        architecture=architecture,
        layers=draw(st.integers(1, most_layers)),
        hidden=draw(st.sampled_from([1024, 4096, 8192])),
        heads=draw(st.sampled_from([4, 16, 64])),
        kv_heads=draw(st.sampled_from([1, 4])),
        head=128,
        vocabulary=draw(st.sampled_from([512, 150000])),
        ff=draw(st.sampled_from([256, 16384])),
        experts=0 if architecture == "llama" else draw(st.sampled_from([16, 128, 512])),
        used=draw(st.integers(1, 4)),
        expert_ff=draw(st.sampled_from([256, 2048])),
        shared_ff=draw(st.sampled_from([0, 2048])),
        dense_lead=draw(st.integers(0, 3)),
        moe_step=draw(st.integers(1, 2)),
        latent=(1536, 512, 128, 64, 128) if architecture == "deepseek2" else None,
        delta=(16, 32, 128) if architecture == "qwen3next" else None,
        tied=draw(st.booleans()),
        biased=draw(st.booleans()),
    )
    layout = shape.layout()
    # Files may give single layers another type: their experts weigh less.
    light = draw(st.sets(st.integers(0, shape.layers)))
    rows = [
        (n, s, "IQ4_KSS" if "_exps.weight" in n and int(n.split(".")[1]) in light else t) for n, s, t in layout.rows
    ]
    return model_of(Layout(layout.metadata, rows))


@st.composite
def cases(
    draw: st.DrawFn, counts: tuple[int, ...] = (1, 1, 2, 2, 3, 3, 0), most_layers: int = 16
) -> tuple[Model, Node, Request]:
    """A model, a machine whose cards hold between nothing and all of it, and a request."""
    model, request = draw(models(most_layers)), draw(requests)
    count = draw(st.sampled_from(counts))
    memory = Memory(request.context or 0)
    base_mib = 2000 + compute_bytes(model, memory, request.ubatch or 512, 0) // MIB
    gpus = [
        card(
            vram_mib=base_mib + model.size_bytes // MIB * draw(st.sampled_from(range(0, 151, 5))) // (100 * count),
            bandwidth_gb_s=draw(st.sampled_from([150.0, 900.0, 1792.0, 1792.0])),
            pcie_gb_s=draw(st.sampled_from([13.0, 52.0])),
        )
        for _ in range(count)
    ]
    memory_mib, cores = draw(st.sampled_from([64_000, 1_000_000])), draw(st.sampled_from([2, 16, 96]))
    return model, with_cards(*gpus, memory_mib=memory_mib, cores=cores), request


def every_filling(model: Model, gpus: int) -> Iterator[Filling]:
    """All ways to split a model's layers over GPUs, each with some of the smallest layers of experts of its range."""
    count = len(model.layers)
    for bounds in itertools.combinations_with_replacement(range(count + 1), gpus - 1):
        ends = [0, *bounds, count]
        homes = [gpu for gpu in range(gpus) for _ in range(ends[gpu], ends[gpu + 1])]
        order = sorted(model.expert_layers, key=lambda index: (model.layers[index].routed_bytes, index))
        mine = [[index for index in order if homes[index] == gpu] for gpu in range(gpus)]
        for taken in itertools.product(*(range(len(each) + 1) for each in mine)):
            experts = tuple(tuple(sorted(each[:n])) for each, n in zip(mine, taken, strict=True))
            yield Filling((*homes, homes[-1]), experts)


class TestAnyMachine:
    @settings(max_examples=300, deadline=None)
    @given(cases())
    def test_what_always_holds(self, case: tuple[Model, Node, Request]) -> None:
        model, node, request = case
        try:
            placement = place(model, node, request)
        except DoesNotFit as refusal:
            assert refusal.lacking_mib > 0
            assert refusal.device in {"CPU", *(f"CUDA{index}" for index in range(len(node.gpus)))}
            return
        # No device holds more than it can, and every entry is one of a real thing.
        for row in placement.rows:
            assert row.free_mib >= 0
            assert min(dataclasses.astuple(row)[1:]) >= 0
        # Every layer of experts is placed once, together.
        placed = [layer for layers in placement.experts.values() for layer in layers]
        assert sorted(placed) == list(model.expert_layers)
        # Rules and --cpu-moe alone, read as the engine reads them, give the same, tensor by tensor.
        rules = [Rule.parse(text) for text in placement.offload.tensor_overrides]
        where = {layer: device for device, layers in placement.experts.items() for layer in layers}
        for part in model.parts:
            hit = next((rule.device for rule in rules if rule.pattern.search(part.name)), None)
            if part.role != "routed":
                assert hit is None
            elif part.layer is not None:
                home = placement.layer_devices[part.layer]
                assert where[part.layer] == (hit or ("CPU" if placement.offload.cpu_moe else home))
                assert where[part.layer] in ("CPU", home)
        # The engine's own reading of the split puts layers where the ledger has them.
        shares = placement.offload.tensor_split
        if shares:
            memory = Memory(request.context or 0, request.parallel, request.kv_type_k, request.kv_type_v)
            if request.dialect == "ik":
                found = split.split_by_bytes(*split.layer_sizes(model, memory, placement.offload.ubatch), shares)
            else:
                found = split.split_by_count(len(model.layers), shares)
            assert [f"CUDA{gpu}" for gpu in found] == list(placement.layer_devices)
        assert placement.offload.ubatch <= placement.offload.batch
        assert placement.decode.low <= placement.decode.expected <= placement.decode.high
        if request.placement == "auto":
            assert placement.offload.threads <= node.physical_cores
            assert placement.offload.threads_batch <= node.physical_cores

    @settings(max_examples=100, deadline=None)
    @given(cases(), st.integers(0, 2), st.integers(1, 60_000))
    def test_more_memory_on_a_card_is_never_slower(
        self, case: tuple[Model, Node, Request], index: int, more_mib: int
    ) -> None:
        model, node, request = case
        assume(node.gpus)
        index %= len(node.gpus)
        gpus = list(node.gpus)
        gpus[index] = dataclasses.replace(gpus[index], vram_mib=gpus[index].vram_mib + more_mib)
        request = dataclasses.replace(request, placement="auto")
        try:
            before = place(model, node, request)
        except DoesNotFit:
            return
        after = place(model, dataclasses.replace(node, gpus=tuple(gpus)), request)
        # It is the whole answer that gets faster: room for faster prompts may cost decode, and the other way round.
        assert after.answer_s <= before.answer_s * (1 + 1e-9)

    @settings(max_examples=40, deadline=None)
    @given(cases(counts=(2,), most_layers=8), st.sampled_from([512, 2048]))
    def test_no_other_filling_answers_faster(self, case: tuple[Model, Node, Request], ubatch: int) -> None:
        model, node, request = case
        request = dataclasses.replace(request, placement="auto", ubatch=ubatch, batch=None, mtp=False)
        try:
            chosen = place(model, node, request)
        except DoesNotFit:
            return
        planner = _Planner(model, node, request, PUBLISHED)
        cores = node.physical_cores
        offload = planner._common(ubatch, request.threads or _decode_threads(cores), request.threads_batch or cores)
        largest = max(model.layers[index].routed_bytes for index in model.expert_layers or (0,))
        for filling in every_filling(model, len(node.gpus)):
            # Room is kept for a copy of the largest layer of experts, unless all are resident.
            away = set(model.expert_layers) - {index for each in filling.experts for index in each}
            if away and max(model.layers[index].routed_bytes for index in away) < largest:
                continue
            try:
                other = planner._of_filling(offload, filling)
            except Overdrawn:
                continue
            # The planner leaves a few MiB for rounding; what fits only there is not its to take.
            if all(row.free_mib >= ROUNDING_MIB for row in other.rows[:-1]):
                assert chosen.answer_s <= other.answer_s * (1 + 1e-9)


class TestWarmUp:
    @pytest.mark.parametrize(
        ("context", "parallel", "ubatch", "tokens"),
        [
            (8192, 1, 2048, [16, 1024, 2064]),
            (8192, 1, 512, [16, 256, 528]),
            (2048, 1, 2048, [16, 1024, 1984]),
            (8192, 8, 2048, [16, 960]),
            (512, 2, 32, [16, 48]),
        ],
    )
    def test_prompts_fit_into_a_slot(self, context: int, parallel: int, ubatch: int, tokens: list[int]) -> None:
        request = Request(context=context, parallel=parallel, ubatch=ubatch)
        assert place(QWEN, epyc_9175f(0), request).warm_up_tokens == tokens
        assert max(tokens) + 8 <= context // parallel

    def test_with_cards_both_ways_of_the_experts_are_taken(self) -> None:
        placement = place(QWEN, epyc_9175f(1), Request(context=16384, ubatch=4096))
        threshold = placement.prompts.threshold
        assert placement.warm_up_tokens == sorted([16, threshold - 1, 2048, 4112])

    def test_chunks_that_are_never_carried_over_need_no_prompt(self) -> None:
        placement = place(QWEN, epyc_9175f(1), Request(placement="cpu-moe", context=16384, ubatch=512))
        assert placement.prompts.threshold > 512
        assert placement.warm_up_tokens == [16, 256, 528]
