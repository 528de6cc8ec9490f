"""Meaning of headers: bytes by kind, KV cache and state of published models against what is known of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from moehost.gguf import GgufSet
from moehost.model import Model, ModelError
from tests.unit import architectures as published
from tests.unit.architectures import Shape
from tests.unit.full_size import Layout, as_set, qwen35_397b

MIB, GIB = 1 << 20, 1 << 30
# ik_llama.cpp 8337e4cd, CPU build: `llama-server --dry-run -c 262144 -b 2048 -ub 2048` on the full model's header.
ENGINE_LOG = Path(__file__).parents[1] / "fixtures" / "ik_llama-dry-run-397b-iq4_nl-ctx262144.log"


def model_of(layout: Layout) -> Model:
    return Model.from_gguf(as_set(layout))


def edited(layout: Layout, **metadata: Any) -> GgufSet:
    """The layout's headers with metadata replaced; `__` stands for a dot, `...` removes a key."""
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    kept = {key: value for key, value in (layout.metadata | changes).items() if value is not ...}
    return as_set(Layout(kept, layout.rows))


@pytest.fixture(scope="module")
def qwen() -> Model:
    return model_of(qwen35_397b())


class TestQwen35:
    """The figures of the full model; the log is of ik_llama.cpp's own --dry-run on the same header."""

    def test_bytes_by_kind(self, qwen: Model) -> None:
        assert qwen.routed_bytes == 202.5 * GIB
        assert sum(part.size_bytes for part in qwen.parts) / MIB == pytest.approx(217650.25, abs=0.01)
        assert qwen.expert_layers == tuple(range(60))
        assert qwen.layers[0].routed_bytes * qwen.active_share == pytest.approx(70.8e6, rel=0.001)
        assert qwen.vocabulary == 248320 and qwen.hidden == 4096 and qwen.context_length == 262144

    def test_layer_sizes_are_those_the_engine_prints(self, qwen: Model) -> None:
        printed = re.findall(r"^Layer +(\d+): +([\d.]+), +([\d.]+), .*  MiB$", ENGINE_LOG.read_text(), re.MULTILINE)
        assert len(printed) == 60
        for index, weights_mib, cache_mib in printed:
            layer = qwen.layers[int(index)]
            assert (layer.resident_bytes + layer.routed_bytes) / MIB == pytest.approx(float(weights_mib), abs=0.01)
            cache_bytes = layer.kv_bytes(262144, "f16", "f16") + layer.state_bytes
            assert cache_bytes / MIB == pytest.approx(float(cache_mib), abs=0.01)

    def test_kv_cache_and_state(self, qwen: Model) -> None:
        assert qwen.kv_bytes_per_token() == 30720
        assert qwen.kv_bytes_per_token("q8_0") == 16320
        assert qwen.kv_bytes_per_token() * 262144 / MIB == 7680
        assert qwen.kv_bytes_per_token("q8_0") * 135168 / MIB == 2103.75
        assert qwen.state_bytes / MIB == pytest.approx(186.33, abs=0.01)

    def test_private_types_are_weighed(self) -> None:
        model = model_of(qwen35_397b("IQ4_KSS"))
        assert model.routed_bytes / GIB == pytest.approx(180.7, abs=0.01)
        assert model.warnings == ()

    def test_merged_gate_and_up_are_routed_too(self, qwen: Model) -> None:
        merged = model_of(qwen35_397b(merged=True))
        assert merged.routed_bytes == qwen.routed_bytes and merged.experts_used == 10
        assert merged.layers == qwen.layers

    def test_the_mtp_layer_is_set_apart(self, qwen: Model) -> None:
        model = model_of(qwen35_397b(mtp=True))
        assert model.has_mtp and not qwen.has_mtp
        assert model.main_layers == qwen.layers
        assert model.layers[60].is_mtp and model.layers[60].routed_bytes == qwen.layers[0].routed_bytes
        assert model.kv_bytes_per_token() == 30720

    def test_an_mtp_layer_that_was_cut_out_is_not_missed(self, qwen: Model) -> None:
        found = edited(qwen35_397b(), qwen35moe__block_count=61, qwen35moe__nextn_predict_layers=1)
        assert Model.from_gguf(found).main_layers == qwen.layers


class TestPublishedModels:
    """Parameters are those the publishers state, in billions; KV bytes follow from their configurations."""

    @pytest.mark.parametrize(
        ("shape", "billions", "kv_bytes", "experts"),
        [
            (published.QWEN3_235B, 235.1, 94 * 2 * 4 * 128 * 2, 94),
            (published.QWEN3_NEXT_80B, 79.7, 12 * 2 * 2 * 256 * 2, 48),
            (published.DEEPSEEK_V3, 671.0, 61 * 576 * 2, 58),
            (published.GLM_45, 358.3, 92 * 2 * 8 * 128 * 2, 89),
            (published.GPT_OSS_120B, 116.8, 36 * 2 * 8 * 64 * 2, 36),
            (published.MINIMAX_M2, 228.7, 62 * 2 * 8 * 128 * 2, 62),
            (published.LLAMA4_MAVERICK, 400.7, 48 * 2 * 8 * 128 * 2, 24),
            (published.LLAMA3_70B, 70.6, 80 * 2 * 8 * 128 * 2, 0),
        ],
        ids=lambda value: value.architecture if isinstance(value, Shape) else "",
    )
    def test_sizes(self, shape: Shape, billions: float, kv_bytes: int, experts: int) -> None:
        layout = shape.layout("F16", "F16")
        model = model_of(layout)
        elements = sum(layer.routed_elements + layer.dense_elements for layer in model.layers)
        elements += model.output_elements * (1 if shape.tied else 2)
        assert elements / 1e9 == pytest.approx(billions, rel=0.005)
        assert model.kv_bytes_per_token() == kv_bytes
        assert len(model.expert_layers) == experts
        assert model.is_known and model.warnings == ()

    def test_dense_layers_first(self) -> None:
        assert model_of(published.DEEPSEEK_V3.layout()).expert_layers == tuple(range(3, 61))
        assert model_of(published.LLAMA4_MAVERICK.layout()).expert_layers == tuple(range(1, 48, 2))

    def test_the_second_form_of_mla_projections_is_counted(self) -> None:
        layer = model_of(published.DEEPSEEK_V3.layout()).layers[5]
        assert layer.derived_bytes == 128 * 512 * (128 + 128) * 34 // 32
        assert layer.resident_bytes == layer.dense_bytes + layer.shared_bytes + layer.derived_bytes

    def test_windows(self) -> None:
        windows = [layer.window for layer in model_of(published.GPT_OSS_120B.layout()).layers]
        assert windows == [128, 0] * 18
        assert [layer.window for layer in model_of(published.LLAMA4_MAVERICK.layout()).layers[:4]] == [8192] * 3 + [0]

    def test_recurrent_layers_have_state_and_no_kv_cache(self) -> None:
        layers = model_of(published.QWEN3_NEXT_80B.layout()).layers
        assert [layer.k_width for layer in layers[:4]] == [0, 0, 0, 512]
        assert [layer.state_bytes for layer in layers[:4]] == [4 * (3 * 8192 + 128 * 128 * 32)] * 3 + [0]

    def test_tied_embeddings_are_on_the_device_a_second_time(self) -> None:
        tied = model_of(dataclasses.replace(published.LLAMA3_70B, tied=True).layout())
        assert tied.output_bytes == tied.embedding_bytes > 0


class TestDoubt:
    def test_an_unknown_architecture_is_weighed_and_said(self) -> None:
        model = model_of(dataclasses.replace(published.QWEN3_235B, architecture="mixtral9").layout())
        assert not model.is_known
        assert "'mixtral9' is not known" in model.warnings[0] and "--dry-run" in model.warnings[0]
        assert model.routed_bytes == model_of(published.QWEN3_235B.layout()).routed_bytes

    def test_a_missing_number_of_used_experts_is_said(self) -> None:
        model = Model.from_gguf(edited(qwen35_397b(), qwen35moe__expert_used_count=...))
        assert model.experts_used == 512 and "taken as all 512" in model.warnings[0]

    def test_repacked_tensors_are_warned_about(self) -> None:
        assert "_R4" in model_of(qwen35_397b("IQ4_NL_R4")).warnings[0]

    def test_head_counts_may_be_given_per_layer(self) -> None:
        found = edited(published.QWEN3_235B.layout(), qwen3moe__attention__head_count_kv=(4,) * 90 + (8,) * 4)
        assert Model.from_gguf(found).kv_bytes_per_token() == 98 * 2 * 4 * 128 * 2

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"general__architecture": ...}, "general.architecture is missing"),
            ({"general__architecture": 7}, "general.architecture is missing or no text"),
            ({"qwen35moe__attention__head_count_kv": "two"}, "head_count_kv is 'two', no sane count"),
            ({"qwen35moe__attention__key_length": -1}, "key_length is '-1', no sane count"),
            ({"qwen35moe__ssm__inner_size": 1 << 40}, "no sane count"),
            ({"qwen35moe__nextn_predict_layers": 99}, "no layers but those of multi-token prediction"),
        ],
    )
    def test_contradictions_are_named(self, metadata: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelError, match=re.escape(message)):
            Model.from_gguf(edited(qwen35_397b(), **metadata))

    @pytest.mark.parametrize("rows", [[], [("token_embd.weight", (32, 4), "F32")], [("blk.0.a", (32, 4), "F32")]])
    def test_what_is_no_language_model_is_refused(self, rows: list[Any]) -> None:
        with pytest.raises(ModelError, match="no language model"):
            model_of(Layout({"general.architecture": "llama"}, rows))

    def test_an_absurd_layer_number_is_refused(self) -> None:
        rows = [("token_embd.weight", (32, 4), "F32"), ("blk.999999.a", (32, 4), "F32")]
        with pytest.raises(ModelError, match="names layer 999999"):
            model_of(Layout({"general.architecture": "llama"}, rows))
