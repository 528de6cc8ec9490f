"""GGUF files with the true header of a full-size model and a sparse data part: real sizes, no weights.

A layout is metadata plus rows of (name, shape, type name). `as_set` turns it into headers in memory, `write`
into a file whose data part is a hole of true length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moehost.gguf import Array, GgufSet, Header, Tensor

# name -> (id, elements of a block, bytes of a block, extra bytes of a row). IQ4_KSS and IQ5_KS are private to
# ik_llama.cpp: a reader knows neither their blocks nor the scale that precedes each row.
TYPES = {
    "F32": (0, 1, 4, 0),
    "F16": (1, 1, 2, 0),
    "BF16": (30, 1, 2, 0),
    "Q8_0": (8, 32, 34, 0),
    "Q6_K": (14, 256, 210, 0),
    "Q4_K": (12, 256, 144, 0),
    "IQ4_NL": (20, 32, 18, 0),
    "MXFP4": (39, 32, 17, 0),
    "IQ4_KSS": (146, 256, 128, 4),
    "IQ4_NL_R4": (220, 32, 18, 0),
}
ALIGNMENT = 32

Row = tuple[str, tuple[int, ...], str]


@dataclass
class Layout:
    """One model: metadata, tensors, and the length of its made-up vocabulary."""

    metadata: dict[str, Any]
    rows: list[Row]
    vocabulary: int = 0

    def arrays(self) -> dict[str, list[Any]]:
        """The vocabulary as a tokenizer stores it."""
        words = [f"tok{number:06d}" for number in range(self.vocabulary)]
        return {
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.token_type": [1] * len(words),
            "tokenizer.ggml.merges": [f"{a} {b}" for a, b in zip(words, words[300:], strict=False)],
        }


def size_bytes(shape: Sequence[int], type_name: str) -> int:
    _, elements, block, extra = TYPES[type_name]
    return math.prod(shape[1:]) * (shape[0] // elements * block + extra)


def tensors(layout: Layout) -> Iterator[Tensor]:
    offset = 0
    for name, shape, type_name in layout.rows:
        size = size_bytes(shape, type_name)
        yield Tensor(name, shape, TYPES[type_name][0], offset, size)
        offset += -(-size // ALIGNMENT) * ALIGNMENT


def as_set(layout: Layout) -> GgufSet:
    """What the reader returns for the written file, as far as planning needs it, without writing it."""
    metadata = layout.metadata | {"tokenizer.ggml.tokens": Array(8, layout.vocabulary)}
    table = tuple(tensors(layout))
    header = Header("model.gguf", 3, metadata, table, 0, sum(t.size_bytes for t in table))
    return GgufSet((header,))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, key: str = "") -> bytes:
    if key.startswith("split."):  # the engine takes these types and no other
        return struct.pack("<Ii", 5, value) if key == "split.tensors.count" else struct.pack("<IH", 2, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii" if value < 0 else "<II", 5 if value < 0 else 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def encoded(metadata: dict[str, Any], table: Sequence[Tensor], version: int = 3) -> bytes:
    """The bytes of a header, padded to where the data part starts."""
    parts = [struct.pack("<4sIQQ", b"GGUF", version, len(table), len(metadata))]
    parts += [_string(key) + _value(value, key) for key, value in metadata.items()]
    for t in table:
        layout = f"<I{len(t.shape)}QIQ"
        parts.append(_string(t.name) + struct.pack(layout, len(t.shape), *t.shape, t.type_id, t.offset))
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _write(path: Path, metadata: dict[str, Any], table: Sequence[Tensor]) -> Path:
    header = encoded(metadata, table)
    path.write_bytes(header)
    end = max((t.offset + -(-t.size_bytes // ALIGNMENT) * ALIGNMENT for t in table), default=0)
    with path.open("r+b") as file:
        file.truncate(len(header) + end)
    return path


def write(path: Path, layout: Layout) -> Path:
    """One file of true length; on disk it takes as much as its header."""
    return _write(path, layout.metadata | layout.arrays(), list(tensors(layout)))


def write_split(folder: Path, layout: Layout, count: int) -> list[Path]:
    """The same model as a split set; as in real sets, only the first shard carries the metadata."""
    paths = []
    for number in range(count):
        rows = layout.rows[number * len(layout.rows) // count : (number + 1) * len(layout.rows) // count]
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(layout.rows)}
        metadata = layout.metadata | layout.arrays() | split if number == 0 else split
        path = folder / f"model-{number + 1:05d}-of-{count:05d}.gguf"
        paths.append(_write(path, metadata, list(tensors(Layout({}, rows)))))
    return paths


def qwen35_397b(experts: str = "IQ4_NL", dense: str = "Q8_0", mtp: bool = False, merged: bool = False) -> Layout:
    """Qwen3.5-397B-A17B: 60 layers, every fourth with full attention, the others with gated delta-net.

    `mtp` adds the multi-token-prediction layer as blk.60, `merged` stores gate and up as one tensor.
    """
    hidden, vocabulary, layers = 4096, 248320, 60
    key = "qwen35moe."
    metadata = {
        "general.architecture": "qwen35moe",
        "general.name": "Qwen3.5-397B-A17B",
        key + "block_count": layers + mtp,
        key + "context_length": 262144,
        key + "embedding_length": hidden,
        key + "expert_count": 512,
        key + "expert_used_count": 10,
        key + "expert_feed_forward_length": 1024,
        key + "expert_shared_feed_forward_length": 1024,
        key + "full_attention_interval": 4,
        key + "attention.head_count": 32,
        key + "attention.head_count_kv": 2,
        key + "attention.key_length": 256,
        key + "attention.value_length": 256,
        key + "rope.dimension_count": 64,
        key + "rope.dimension_sections": [11, 11, 10, 0],
        key + "ssm.conv_kernel": 4,
        key + "ssm.inner_size": 8192,
        key + "ssm.state_size": 128,
        key + "ssm.time_step_rank": 64,
        key + "ssm.group_count": 16,
        key + "attention.layer_norm_rms_epsilon": 1e-6,
        key + "rope.freq_base": 1e7,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
    }
    if mtp:
        metadata[key + "nextn_predict_layers"] = 1
    rows: list[Row] = [
        ("token_embd.weight", (hidden, vocabulary), dense),
        ("output_norm.weight", (hidden,), "F32"),
        ("output.weight", (hidden, vocabulary), dense),
    ]
    for layer in range(layers + mtp):
        full = layer == layers or layer % 4 == 3
        block: list[Row] = [("attn_norm", (hidden,), "F32"), ("post_attention_norm", (hidden,), "F32")]
        if full:
            block += [
                ("attn_q", (hidden, 16384), dense),
                ("attn_k", (hidden, 512), dense),
                ("attn_v", (hidden, 512), dense),
                ("attn_output", (8192, hidden), dense),
                ("attn_q_norm", (256,), "F32"),
                ("attn_k_norm", (256,), "F32"),
            ]
        else:
            block += [
                ("attn_qkv", (hidden, 12288), dense),
                ("attn_gate", (hidden, 8192), dense),
                ("ssm_conv1d", (4, 12288), "F32"),
                ("ssm_alpha", (hidden, 64), dense),
                ("ssm_beta", (hidden, 64), dense),
                ("ssm_norm", (128,), "F32"),
                ("ssm_out", (8192, hidden), dense),
            ]
        block += [("ffn_gate_inp", (hidden, 512), "F32"), ("ffn_gate_inp_shexp", (hidden,), "F32")]
        if merged:
            block += [("ffn_gate_up_exps", (hidden, 2048, 512), experts)]
        else:
            block += [(f"ffn_{part}_exps", (hidden, 1024, 512), experts) for part in ("gate", "up")]
        block += [
            ("ffn_down_exps", (1024, hidden, 512), experts),
            ("ffn_gate_shexp", (hidden, 1024), dense),
            ("ffn_up_shexp", (hidden, 1024), dense),
            ("ffn_down_shexp", (1024, hidden), dense),
        ]
        rows += [(f"blk.{layer}.{part}.weight", shape, type_name) for part, shape, type_name in block]
        if not full:
            rows += [(f"blk.{layer}.{part}", (64,), "F32") for part in ("ssm_a", "ssm_dt.bias")]
        if layer == layers:
            rows += [
                (f"blk.{layer}.nextn.eh_proj.weight", (2 * hidden, hidden), dense),
                (f"blk.{layer}.nextn.enorm.weight", (hidden,), "F32"),
                (f"blk.{layer}.nextn.hnorm.weight", (hidden,), "F32"),
                (f"blk.{layer}.nextn.shared_head_norm.weight", (hidden,), "F32"),
            ]
    return Layout(metadata, rows, vocabulary)
