"""What the engine says of its buffers, and how it compares with a ledger.

Logs are of real runs unless a test says that only their format is known, from the source of ik_llama.cpp 8337e4cd.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moehost.dry_run import Buffers, Difference, compare, corrected_margins, free_mib, parse, refusal
from moehost.ledger import Row
from moehost.model import Model
from moehost.planner import place
from moehost.request import Request
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f

FIXTURES = Path(__file__).parents[1] / "fixtures"
# --dry-run of Qwen3.5-397B's header, IQ4_NL, -c 262144 -ub 2048, CPU build, no GPU.
LOG = (FIXTURES / "ik_llama-dry-run-397b-iq4_nl-ctx262144.log").read_text()
MTP_LOG = (FIXTURES / "dry_run" / "mtp-397b-q8_0-ctx65536-ub2048.log").read_text()
NO_MEMORY_LOG = (FIXTURES / "dry_run" / "refused-memory.log").read_text()

# Format from source, not from a run: src/llama.cpp:7841, 4820-4832, 1614, 8551, 8585, 8659. The numbers are made up.
# Weights that are kept on the host are named CUDA_Host where they are pinned, and CPU where they are not.
CUDA_LOG = """\
CUDA0: using device CUDA0 - 96841 MiB free
CUDA1: using device CUDA1 - 96845 MiB free
llm_load_print_meta: n_layer          = 60
======================================= HAVE_FANCY_SIMD is NOT defined
llm_load_tensors: offloading 60 repeating layers to GPU
llm_load_tensors: offloading non-repeating layers to GPU
llm_load_tensors: offloaded 61/61 layers to GPU
llm_load_tensors:  CUDA_Host buffer size = 49414.25 MiB
llm_load_tensors:        CPU buffer size =  1030.62 MiB
llm_load_tensors:      CUDA0 buffer size = 83345.12 MiB
llm_load_tensors:      CUDA1 buffer size = 83860.50 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =  3939.34 MiB
llama_kv_cache_init:      CUDA1 KV buffer size =  3927.00 MiB
llama_init_from_model: KV self size  = 7680.00 MiB, K (f16): 3840.00 MiB, V (f16): 3840.00 MiB
llama_init_from_model:  CUDA_Host  output buffer size =     0.95 MiB
llama_init_from_model:      CUDA0 compute buffer size =  4100.00 MiB
llama_init_from_model:      CUDA1 compute buffer size =  2048.50 MiB
llama_init_from_model:  CUDA_Host compute buffer size =   512.25 MiB
"""


class TestParse:
    def test_the_full_model_on_a_cpu(self) -> None:
        assert parse(LOG) == Buffers(
            weights_mib={"CPU": 217650.25},
            kv_mib={"CPU": 7866.33},
            compute_mib={"CPU": 1972.0},
            gpu_free_mib={},
            kv_self_mib=7680.0,
            layers=60,
            parameters=396.346e9,
            model_mib=pytest.approx(217650.176),
            has_fancy_simd=True,
        )
        assert parse(LOG).state_mib == 186.33
        assert parse(LOG).is_complete

    def test_the_second_context_of_multi_token_prediction_adds_up(self) -> None:
        buffers = parse(MTP_LOG)
        assert buffers.layers == 61
        assert buffers.kv_self_mib == 1088 + 68
        assert buffers.kv_mib == {"CPU": pytest.approx(1274.33 + 68)}
        assert buffers.compute_mib == {"CPU": 2 * 1972}
        assert buffers.state_mib == 186.33

    def test_gpus_and_pinned_memory(self) -> None:
        """Format from source, not from a run."""
        assert parse(CUDA_LOG) == Buffers(
            weights_mib={"CPU": 49414.25 + 1030.62, "CUDA0": 83345.12, "CUDA1": 83860.5},
            kv_mib={"CUDA0": 3939.34, "CUDA1": 3927.0},
            compute_mib={"CUDA0": 4100.0, "CUDA1": 2048.5, "CPU": 512.25},
            gpu_free_mib={"CUDA0": 96841, "CUDA1": 96845},
            kv_self_mib=7680.0,
            layers=60,
            offloaded_layers=61,
            has_fancy_simd=False,
        )

    @pytest.mark.parametrize(
        "line",
        [
            # src/llama.cpp:8538, 8543 and 8547: latent attention without and with flash attention, keys alone
            "f: KV self size  = 4392.00 MiB, c^KV (f16): 4392.00 MiB, kv^T (f16):    0.00 MiB",
            "f: KV self size  = 4392.00 MiB, c^KV (f16): 4392.00 MiB, kv^T: not used",
            "f: KV self size = 4392.00 MiB, K-only (f16): 4392.00 MiB; independent V-cache: not used",
        ],
    )
    def test_other_caches(self, line: str) -> None:
        """Format from source, not from a run."""
        assert parse(line).kv_self_mib == 4392

    def test_what_is_not_said_is_absent(self) -> None:
        assert parse("") == Buffers({}, {}, {}, {})
        assert parse("").state_mib is None
        assert not parse("").is_complete
        # The log up to the weights: a start that was cut short.
        short = parse(LOG[: LOG.index("llama_init_from_model: n_ctx")])
        assert short.weights_mib and not short.is_complete and short.kv_self_mib is None

    def test_a_chat_template_or_a_name_is_no_buffer(self) -> None:
        said = (
            "init: chat template, example_format: 'x: CPU buffer size = 1.00 MiB'\nCPU buffer size = 9 MiB and more"
        )
        assert parse(said) == Buffers({}, {}, {}, {})


class TestRefusal:
    def test_a_machine_smaller_than_the_model(self) -> None:
        said = refusal(NO_MEMORY_LOG)
        assert said and said.startswith("the kernel grants no 217650 MiB at once")
        assert "vm.overcommit_memory=1" in said

    def test_a_card_that_is_full(self) -> None:
        """Format from source, not from a run: ggml/src/ggml-cuda.cu:739, src/llama.cpp:4785 and 5045."""
        log = (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 83345.12 MiB on device 1: "
            "cudaMalloc failed: out of memory\n"
            "Failed to allocate buffer type CUDA1\n"
            "llama_model_load: error loading model: unable to allocate backend buffer\n"
        )
        said = refusal(log)
        assert said and said.startswith("CUDA1 has no 83345 MiB left (out of memory); ")

    def test_a_model_it_does_not_know(self) -> None:
        """Of a run: a layout with a tensor misnamed."""
        log = "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.ssm_a' not found\n"
        assert refusal(log) == "the engine refuses the plan: check_tensor_dims: tensor 'blk.0.ssm_a' not found"

    def test_a_flag_it_does_not_know(self) -> None:
        """Of a run with --no-mmapp."""
        assert refusal("error: unknown argument: --no-mmapp\nusage: llama-server [options]\n") == (
            "the engine refuses the plan: unknown argument: --no-mmapp"
        )

    @pytest.mark.parametrize("log", [LOG, MTP_LOG, CUDA_LOG, ""])
    def test_a_good_start_is_none(self, log: str) -> None:
        assert refusal(log) is None


CARD = Row("CUDA0", 97887, 9000, 74346, 3800, 140, 4100, 600, margin_mib=1024)  # 83346, 3940 and 4100 MiB
HOST = Row("CPU", 773000, 1031, 49415, compute_mib=513, margin_mib=4096)


def sized(**changes: float) -> Buffers:
    """An engine that agrees with CARD and HOST, but for the changes."""
    sizes = {"weights": 83345.2, "kv": 3939.5, "compute": 4100.0} | changes
    return Buffers(
        {"CUDA0": sizes["weights"], "CPU": 50444.9},
        {"CUDA0": sizes["kv"]},
        {"CUDA0": sizes["compute"], "CPU": 512.25},
        {},
        kv_self_mib=sizes["kv"] - 139.75,
    )


class TestCompare:
    def test_the_full_model_agrees_line_by_line(self) -> None:
        request = Request("cpu-moe", context=262144, ubatch=2048)
        rows = place(Model.from_gguf(as_set(qwen35_397b())), epyc_9175f(0), request).rows
        differences = compare(rows, parse(LOG))
        assert [(d.device, d.what) for d in differences] == [
            ("CPU", "weights"),
            ("CPU", "cache"),
            ("CPU", "compute"),
            ("all", "KV cache"),
            ("all", "state"),
        ]
        assert all(d.is_within for d in differences)
        assert corrected_margins(rows, parse(LOG)) == ()

    def test_a_ledger_for_another_context_does_not(self) -> None:
        request = Request("cpu-moe", context=131072, ubatch=2048)
        rows = place(Model.from_gguf(as_set(qwen35_397b())), epyc_9175f(0), request).rows
        differences = compare(rows, parse(LOG))
        assert [(d.device, d.what) for d in differences if not d.is_within] == [("CPU", "cache"), ("all", "KV cache")]

    @pytest.mark.parametrize(
        ("what", "ledger_mib", "engine_mib", "is_within"),
        [
            ("weights", 1005, 1000.0, True),
            ("weights", 1010, 1000.0, False),
            ("weights", 990, 1000.0, False),
            ("compute", 1030, 1000.0, True),
            ("compute", 1040, 1000.0, False),
            ("compute", 960, 1000.0, False),
            ("state", 5, 4.14, True),  # the ledger rounds up
            ("state", 5, None, False),
            ("weights", 500, 0.0, False),
        ],
    )
    def test_tolerance(self, what: str, ledger_mib: float, engine_mib: float | None, is_within: bool) -> None:
        assert Difference("CUDA0", what, ledger_mib, engine_mib).is_within is is_within

    def test_per_cent_is_the_ledgers_error(self) -> None:
        assert Difference("CUDA0", "compute", 1030, 1000.0).per_cent == pytest.approx(3)
        assert Difference("CUDA0", "compute", 970, 1000.0).per_cent == pytest.approx(-3)
        assert Difference("CUDA0", "compute", 970, None).per_cent is None
        assert Difference("CUDA0", "compute", 970, 0.0).per_cent is None

    def test_a_device_without_a_buffer_is_a_difference(self) -> None:
        """A plan for two cards, of which the engine saw one."""
        rows = [CARD, replace(CARD, device="CUDA1"), HOST]
        differing = [d for d in compare(rows, sized()) if not d.is_within]
        assert [(d.device, d.what, d.engine_mib) for d in differing[:3]] == [
            ("CUDA1", "weights", 0.0),
            ("CUDA1", "cache", 0.0),
            ("CUDA1", "compute", 0.0),
        ]

    def test_a_device_that_the_plan_does_not_know_is_one_too(self) -> None:
        assert Difference("CUDA0", "weights", 0, 83345.2) in compare([HOST], sized())

    def test_an_unfinished_start_leaves_open_what_it_has_not_printed(self) -> None:
        short = Buffers({"CUDA0": 83345.2, "CPU": 50444.9}, {}, {}, {})
        found = {(d.device, d.what): d.engine_mib for d in compare([CARD, HOST], short)}
        assert found[("CUDA0", "compute")] is None and found[("all", "KV cache")] is None
        assert found[("CUDA0", "weights")] == 83345.2


class TestCorrection:
    def test_agreement_corrects_nothing(self) -> None:
        assert all(d.is_within for d in compare([CARD, HOST], sized()))
        assert corrected_margins([CARD, HOST], sized()) == (1024,)
        assert free_mib([CARD, HOST], sized()) == {"CUDA0": CARD.free_mib, "CPU": HOST.free_mib}

    def test_what_the_engine_takes_more_widens_the_margin(self) -> None:
        engine = sized(compute=5000.5)
        assert corrected_margins([CARD, HOST], engine) == (1024 + 901,)
        assert free_mib([CARD, HOST], engine)["CUDA0"] == CARD.free_mib - 901

    def test_what_it_takes_less_narrows_it(self) -> None:
        assert corrected_margins([CARD, HOST], sized(compute=3600.0)) == (1024 - 500,)
        assert corrected_margins([CARD, HOST], sized(compute=1000.0)) == (0,)
        assert free_mib([CARD, HOST], sized(compute=1000.0))["CUDA0"] == CARD.free_mib + 3100

    def test_every_card_has_its_own(self) -> None:
        rows = [CARD, replace(CARD, device="CUDA1", margin_mib=512), HOST]
        engine = sized(compute=4200.0)
        both = replace(
            engine,
            weights_mib={**engine.weights_mib, "CUDA1": 83345.2},
            kv_mib={**engine.kv_mib, "CUDA1": 3939.5},
            compute_mib={**engine.compute_mib, "CUDA1": 4150.0},
        )
        assert corrected_margins(rows, both) == (1024 + 100, 512 + 50)

    def test_what_is_not_known_corrects_nothing(self) -> None:
        short = Buffers({"CUDA0": 83345.2}, {}, {}, {})
        assert corrected_margins([CARD, HOST], short) == (1024,)

    def test_the_corrected_plan_keeps_the_room_that_was_asked_for(self) -> None:
        """An engine that takes 4 GiB more than the ledger on a card: the next plan leaves so much more free."""
        model = Model.from_gguf(as_set(qwen35_397b()))
        request = Request(context=262144, ubatch=2048)
        first = place(model, epyc_9175f(1), request)
        card = first.rows[0]
        engine = Buffers(
            {"CUDA0": card.dense_mib + card.experts_mib, "CPU": first.rows[1].dense_mib + first.rows[1].experts_mib},
            {"CUDA0": card.kv_mib + card.state_mib},
            {"CUDA0": card.compute_mib + 4096.0, "CPU": float(first.rows[1].compute_mib)},
            {},
        )
        assert free_mib(first.rows, engine)["CUDA0"] < 0
        second = place(model, epyc_9175f(1), replace(request, margins_mib=corrected_margins(first.rows, engine)))
        assert second.rows[0].margin_mib == 1024 + 4096
        assert len(second.experts["CUDA0"]) < len(first.experts["CUDA0"])
