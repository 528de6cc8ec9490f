"""Tensor layouts of published models, by the names their GGUF files use, to plan them without having them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.unit.full_size import Layout, Row


@dataclass(frozen=True)
class Shape:
    """A transformer in numbers, as its publisher's configuration gives them.

    + dense_lead, moe_step: how many first layers have a dense FFN, and that every n-th of the others has experts
    + latent: query rank, key-value rank, head sizes without and with position, value head size (MLA)
    + delta: key heads, value heads, state size of a gated delta net on three layers of four
    + extra: metadata beyond what the numbers say
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    ff: int = 0
    experts: int = 0
    used: int = 0
    expert_ff: int = 0
    shared_ff: int = 0
    dense_lead: int = 0
    moe_step: int = 1
    latent: tuple[int, int, int, int, int] | None = None
    delta: tuple[int, int, int] | None = None
    gated_attention: bool = False
    biased: bool = False
    tied: bool = False
    mtp: int = 0
    extra: tuple[tuple[str, Any], ...] = ()

    def layout(self, experts: str = "IQ4_NL", dense: str = "Q8_0") -> Layout:
        key = f"{self.architecture}."
        metadata: dict[str, Any] = {
            "general.architecture": self.architecture,
            key + "block_count": self.layers + self.mtp,
            key + "context_length": 131072,
            key + "embedding_length": self.hidden,
            key + "attention.head_count": self.heads,
            key + "attention.head_count_kv": self.kv_heads,
            key + "attention.key_length": self.head,
            key + "attention.value_length": self.head,
        }
        if self.experts:
            metadata |= {key + "expert_count": self.experts, key + "expert_used_count": self.used}
        if self.mtp:
            metadata[key + "nextn_predict_layers"] = self.mtp
        if self.latent:
            metadata |= {key + "attention.kv_lora_rank": self.latent[1], key + "rope.dimension_count": self.latent[3]}
        if self.delta:
            keys, values, state = self.delta
            metadata |= {key + "ssm.conv_kernel": 4, key + "ssm.state_size": state, key + "ssm.group_count": keys}
            metadata |= {key + "ssm.time_step_rank": values, key + "ssm.inner_size": values * state}
        metadata |= {key + name: value for name, value in self.extra}
        rows: list[Row] = [("token_embd.weight", (self.hidden, self.vocabulary), dense)]
        rows.append(("output_norm.weight", (self.hidden,), "F32"))
        if not self.tied:
            rows.append(("output.weight", (self.hidden, self.vocabulary), dense))
        for index in range(self.layers + self.mtp):
            block = [("attn_norm", (self.hidden,), "F32"), ("ffn_norm", (self.hidden,), "F32")]
            block += self._attention(index, dense) + self._ffn(index, experts, dense)
            rows += [(f"blk.{index}.{part}.weight", shape, type_name) for part, shape, type_name in block]
            if self.biased and self._has_experts(index):
                biases = [("gate", self.expert_ff), ("up", self.expert_ff), ("down", self.hidden)]
                rows += [(f"blk.{index}.ffn_{part}_exps.bias", (size, self.experts), "F32") for part, size in biases]
            if index >= self.layers:
                rows.append((f"blk.{index}.nextn.eh_proj.weight", (2 * self.hidden, self.hidden), dense))
        return Layout(metadata, rows)

    def _has_experts(self, index: int) -> bool:
        return self.experts > 0 and index >= self.dense_lead and (index + 1) % self.moe_step == 0

    def _attention(self, index: int, dense: str) -> list[Row]:
        hidden = self.hidden
        if self.latent:
            q_rank, rank, nope, rope, value = self.latent
            return [
                ("attn_q_a", (hidden, q_rank), dense),
                ("attn_q_b", (q_rank, self.heads * (nope + rope)), dense),
                ("attn_kv_a_mqa", (hidden, rank + rope), dense),
                ("attn_k_b", (nope, rank, self.heads), dense),
                ("attn_v_b", (rank, value, self.heads), dense),
                ("attn_output", (self.heads * value, hidden), dense),
            ]
        if self.delta and index < self.layers and index % 4 < 3:
            keys, values, state = self.delta
            channels = (2 * keys + values) * state
            return [
                ("attn_qkv", (hidden, channels), dense),
                ("attn_gate", (hidden, values * state), dense),
                ("ssm_ba", (hidden, 2 * values), dense),
                ("ssm_conv1d", (4, channels), "F32"),
                ("ssm_out", (values * state, hidden), dense),
            ]
        return [
            ("attn_q", (hidden, self.heads * self.head * (1 + self.gated_attention)), dense),
            ("attn_k", (hidden, self.kv_heads * self.head), dense),
            ("attn_v", (hidden, self.kv_heads * self.head), dense),
            ("attn_output", (self.heads * self.head, hidden), dense),
        ]

    def _ffn(self, index: int, experts: str, dense: str) -> list[Row]:
        hidden = self.hidden
        if not self._has_experts(index):
            return [(f"ffn_{part}", (hidden, self.ff), dense) for part in ("gate", "up")] + [
                ("ffn_down", (self.ff, hidden), dense)
            ]
        block: list[Row] = [("ffn_gate_inp", (hidden, self.experts), "F32")]
        block += [(f"ffn_{part}_exps", (hidden, self.expert_ff, self.experts), experts) for part in ("gate", "up")]
        block.append(("ffn_down_exps", (self.expert_ff, hidden, self.experts), experts))
        if self.shared_ff:
            block += [(f"ffn_{part}_shexp", (hidden, self.shared_ff), dense) for part in ("gate", "up")]
            block.append(("ffn_down_shexp", (self.shared_ff, hidden), dense))
        return block


QWEN3_235B = Shape("qwen3moe", 94, 4096, 64, 4, 128, 151936, experts=128, used=8, expert_ff=1536)
QWEN3_NEXT_80B = Shape(
    "qwen3next", 48, 2048, 16, 2, 256, 151936, experts=512, used=10, expert_ff=512, shared_ff=512,
    delta=(16, 32, 128), gated_attention=True,
)  # fmt: skip
DEEPSEEK_V3 = Shape(
    "deepseek2", 61, 7168, 128, 1, 576, 129280, ff=18432, experts=256, used=8, expert_ff=2048, shared_ff=2048,
    dense_lead=3, latent=(1536, 512, 128, 64, 128),
)  # fmt: skip
GLM_45 = Shape(
    "glm4moe", 92, 5120, 96, 8, 128, 151552, ff=12288, experts=160, used=8, expert_ff=1536, shared_ff=1536,
    dense_lead=3, mtp=1,
)  # fmt: skip
GPT_OSS_120B = Shape(
    "gpt-oss", 36, 2880, 64, 8, 64, 201088, experts=128, used=4, expert_ff=2880, biased=True,
    extra=(("attention.sliding_window", 128),),
)  # fmt: skip
MINIMAX_M2 = Shape("minimax-m2", 62, 3072, 48, 8, 128, 200064, experts=256, used=8, expert_ff=1536)
LLAMA4_MAVERICK = Shape(
    "llama4", 48, 5120, 40, 8, 128, 202048, ff=16384, experts=128, used=1, expert_ff=8192, shared_ff=8192, moe_step=2,
)  # fmt: skip
LLAMA3_70B = Shape("llama", 80, 8192, 64, 8, 128, 128256, ff=28672)
