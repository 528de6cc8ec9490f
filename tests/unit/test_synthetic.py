"""Small models with the real layout: what their files hold, read back with the library's own reader."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from moehost.synthetic import Shape, layout, write

TINY = Shape(embedding=32, experts=4, experts_used=2, expert_ff=32, vocabulary=512)

EVERY_LAYER = {
    "attn_norm.weight",
    "post_attention_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_down_exps.weight",
    "ffn_gate_inp_shexp.weight",
    "ffn_gate_shexp.weight",
    "ffn_up_shexp.weight",
    "ffn_down_shexp.weight",
}
SEPARATE = {"ffn_gate_exps.weight", "ffn_up_exps.weight"}
MERGED = {"ffn_gate_up_exps.weight"}
LINEAR_ATTENTION = {
    "attn_qkv.weight",
    "attn_gate.weight",
    "ssm_conv1d.weight",
    "ssm_dt.bias",
    "ssm_a",
    "ssm_beta.weight",
    "ssm_alpha.weight",
    "ssm_norm.weight",
    "ssm_out.weight",
}
FULL_ATTENTION = {f"attn_{part}.weight" for part in ("q", "k", "v", "q_norm", "k_norm", "output")}
NEXT_TOKEN = {f"nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "shared_head_norm")}


def open_model(directory: Path, shape: Shape) -> gguf.GGUFReader:
    [path] = write(directory / "model.gguf", shape)
    return gguf.GGUFReader(path)


def parts_of_layer(names: set[str], layer: int) -> set[str]:
    prefix = f"blk.{layer}."
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def field(reader: gguf.GGUFReader, key: str) -> object:
    found = reader.get_field(key)
    return None if found is None else found.contents()


def weights(reader: gguf.GGUFReader, name: str) -> np.ndarray:
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == name]
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_the_same_shape_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    [first] = write(tmp_path / "first.gguf", TINY)
    [again] = write(tmp_path / "again.gguf", TINY)
    [other] = write(tmp_path / "other.gguf", replace(TINY, seed=1))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("merged", [False, True])
def test_every_layer_has_the_tensors_of_its_kind_and_no_others(tmp_path: Path, merged: bool) -> None:
    reader = open_model(tmp_path, replace(TINY, layers=8, merged_gate_up=merged))
    names = {tensor.name for tensor in reader.tensors}
    common = EVERY_LAYER | (MERGED if merged else SEPARATE)
    for layer in range(8):
        attention = FULL_ATTENTION if layer in (3, 7) else LINEAR_ATTENTION
        assert parts_of_layer(names, layer) == common | attention
    rest = {name for name in names if not name.startswith("blk.")}
    assert rest == {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert field(reader, "qwen35moe.block_count") == 8
    assert field(reader, "qwen35moe.nextn_predict_layers") is None


def test_the_mtp_layer_comes_last_and_has_full_attention(tmp_path: Path) -> None:
    reader = open_model(tmp_path, replace(TINY, mtp=True))
    names = {tensor.name for tensor in reader.tensors}
    assert parts_of_layer(names, 4) == EVERY_LAYER | SEPARATE | FULL_ATTENTION | NEXT_TOKEN
    assert field(reader, "qwen35moe.block_count") == 5
    assert field(reader, "qwen35moe.nextn_predict_layers") == 1


def test_tensors_have_the_dimensions_that_the_metadata_announces(tmp_path: Path) -> None:
    reader = open_model(tmp_path, TINY)
    sizes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    assert sizes == layout(TINY)

    def number(key: str) -> int:
        value = field(reader, f"qwen35moe.{key}")
        assert isinstance(value, int)
        return value

    width, experts = number("embedding_length"), number("expert_count")
    head, state, values = number("attention.key_length"), number("ssm.state_size"), number("ssm.inner_size")
    conv = values + 2 * state * number("ssm.group_count")
    assert sizes["blk.0.ffn_down_exps.weight"] == (experts, width, number("expert_feed_forward_length"))
    assert sizes["blk.0.attn_qkv.weight"] == (conv, width)
    assert sizes["blk.0.ssm_conv1d.weight"] == (conv, number("ssm.conv_kernel"))
    assert values == state * number("ssm.time_step_rank")
    assert sizes["blk.3.attn_q.weight"] == (2 * head * number("attention.head_count"), width)
    assert sizes["blk.3.attn_k.weight"] == (head * number("attention.head_count_kv"), width)
    assert 2 * sum(field(reader, "qwen35moe.rope.dimension_sections")) == number("rope.dimension_count")


def test_the_merged_variant_holds_the_weights_of_the_plain_one(tmp_path: Path) -> None:
    plain = open_model(tmp_path, TINY)
    halves = [weights(plain, f"blk.0.ffn_{half}_exps.weight") for half in ("gate", "up")]
    merged = open_model(tmp_path, replace(TINY, merged_gate_up=True))
    assert np.array_equal(weights(merged, "blk.0.ffn_gate_up_exps.weight"), np.concatenate(halves, axis=1))


@pytest.mark.parametrize(("quantisation", "error"), [("F16", 0.001), ("Q8_0", 0.01), ("IQ4_NL", 0.1)])
def test_quantised_experts_stay_near_the_weights_they_stand_for(
    tmp_path: Path, quantisation: str, error: float
) -> None:
    name = "blk.0.ffn_up_exps.weight"
    exact = weights(open_model(tmp_path, replace(TINY, quantisation="F16")), name)
    reader = open_model(tmp_path, replace(TINY, quantisation=quantisation))
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == name]
    assert tensor.tensor_type.name == quantisation
    assert np.std(weights(reader, name) - exact) <= error * np.std(exact)


@pytest.mark.parametrize("shards", [2, 3, 32])
def test_shards_together_hold_the_model_once(tmp_path: Path, shards: int) -> None:
    paths = write(tmp_path / "split.gguf", replace(TINY, shards=shards))
    assert [path.name for path in paths] == [
        f"split-{number:05}-of-{shards:05}.gguf" for number in range(1, shards + 1)
    ]
    readers = [gguf.GGUFReader(path) for path in paths]
    names = [tensor.name for reader in readers for tensor in reader.tensors]
    assert names == list(layout(TINY))
    assert all(reader.tensors for reader in readers)
    assert [field(reader, "split.no") for reader in readers] == list(range(shards))
    assert {field(reader, "split.count") for reader in readers} == {shards}
    assert {field(reader, "split.tensors.count") for reader in readers} == {len(names)}


def test_the_vocabulary_is_complete_and_its_merges_lead_to_tokens(tmp_path: Path) -> None:
    reader = open_model(tmp_path, TINY)
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = field(reader, "tokenizer.ggml.merges")
    types = field(reader, "tokenizer.ggml.token_type")
    assert isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)
    assert len(tokens) == len(set(tokens)) == len(types) == TINY.vocabulary
    assert all(len(letter) == 1 for letter in tokens[:256])
    assert [merge.replace(" ", "") for merge in merges] == tokens[256:-3]
    assert types == [gguf.TokenType.NORMAL] * 509 + [gguf.TokenType.CONTROL] * 3
    assert tokens[field(reader, "tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert "<|im_start|>" in field(reader, "tokenizer.chat_template")


def test_no_layer_writes_to_the_constant_that_silences_bytes_and_control_tokens(tmp_path: Path) -> None:
    reader = open_model(tmp_path, replace(TINY, mtp=True))
    writers = [name for name in layout(TINY) if name.endswith(("_output.weight", "ssm_out.weight"))]
    writers += [name for name in layout(TINY) if "ffn_down" in name]
    assert not any(weights(reader, name)[..., 0, :].any() for name in writers)
    assert np.ptp(weights(reader, "token_embd.weight")[:, 0]) == 0
    penalty = weights(reader, "output.weight")[:, 0]
    assert (penalty[:256] < 0).all() and not penalty[256:-3].any() and (penalty[-3:] < 0).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": 3}, "layers must be at least 4"),
        ({"embedding": 48}, "embedding must be a positive multiple of 32"),
        ({"expert_ff": 0}, "expert_ff must be a positive multiple of 32"),
        ({"experts_used": 5}, "experts_used must lie between 1 and experts"),
        ({"vocabulary": 300}, "vocabulary must lie between 512 and 11494"),
        ({"quantisation": "IQ4_KSS"}, "quantisation must be one of F16, BF16, Q4_0, Q8_0, IQ4_NL"),
        ({"shards": 0}, "shards must lie between 1 and 32"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_a_shape_that_an_engine_would_refuse_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(TINY, **change)
