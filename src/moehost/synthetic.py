"""Writes small models with the tensor layout of Qwen3.5-MoE and random weights, which speak gibberish.

They are there to be loaded, placed, served and measured like the real model, in seconds and on any machine.
Names, kinds of layers, head sizes and metadata are those of architecture `qwen35moe`; only the counts are
small. The answers are random syllables: nothing can be learned from them about the quality of anything.

Two liberties make the answers predictable. Channel 0 of the hidden state carries a constant that no layer
writes to, and the output matrix turns it into a penalty on bytes and control tokens: an answer is plain ASCII
and as long as it was asked to be. And the MTP layer passes the embedding of the last token through, so that
some of its drafts are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from zlib import crc32

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

ARCHITECTURE = "qwen35moe"
CONTEXT = 262144
FULL_ATTENTION_INTERVAL = 4
EXPERT_TYPES = ("F16", "BF16", "Q4_0", "Q8_0", "IQ4_NL")
MAX_SHARDS = 32  # ik_llama.cpp keeps 64 GGUF contexts, some of which it needs itself

# Head sizes of the real model, because the engines' kernels are chosen by them; fewer heads.
HEADS, KV_HEADS, HEAD_SIZE, ROPE_SIZE, ROPE_SECTIONS = 4, 2, 256, 64, (11, 11, 10, 0)
KEY_HEADS, VALUE_HEADS, STATE_SIZE, CONV_KERNEL = 2, 8, 128, 4

BYTES = 256
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYLLABLES = tuple(consonant + vowel for consonant, vowel in product("bcdfghjklmnpqrstvwxyz", "aeiou"))
MIN_VOCABULARY = 512
MAX_VOCABULARY = BYTES + 2 * len(SYLLABLES) + len(SYLLABLES) ** 2 + len(CONTROL_TOKENS)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# The logits of the other tokens stay within about 10. The constant reaches the output as 1 to 4, so a token
# under the penalty never wins a draw, however hot; a grammar can still ask for it.
CONSTANT, PENALTY = 4.0, -32.0


@dataclass(frozen=True)
class Shape:
    """How large a model is and which variant of the layout it has.

    + layers: transformer layers, every fourth with full attention, the others with a gated delta net
    + embedding, expert_ff: widths of the hidden state and of one expert, multiples of 32
    + experts, experts_used: routed experts per layer, and how many of them a token goes through
    + vocabulary: tokens
    + merged_gate_up: one tensor `ffn_gate_up_exps` instead of `ffn_gate_exps` and `ffn_up_exps`
    + mtp: one more layer that predicts a further token
    + quantisation: type of the routed experts, one of `EXPERT_TYPES`; all other matrices are F16 or F32
    + shards: files
    + seed: the same shape and seed give the same bytes

    Raises ValueError for a shape that an engine would refuse.
    """

    layers: int = 4
    embedding: int = 256
    experts: int = 16
    experts_used: int = 4
    expert_ff: int = 128
    vocabulary: int = 1024
    merged_gate_up: bool = False
    mtp: bool = False
    quantisation: str = "IQ4_NL"
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            f"layers must be at least {FULL_ATTENTION_INTERVAL}": self.layers >= FULL_ATTENTION_INTERVAL,
            "embedding must be a positive multiple of 32": self.embedding > 0 and self.embedding % 32 == 0,
            "expert_ff must be a positive multiple of 32": self.expert_ff > 0 and self.expert_ff % 32 == 0,
            "experts_used must lie between 1 and experts, experts not above 512": (
                1 <= self.experts_used <= self.experts <= 512
            ),
            f"vocabulary must lie between {MIN_VOCABULARY} and {MAX_VOCABULARY}": (
                MIN_VOCABULARY <= self.vocabulary <= MAX_VOCABULARY
            ),
            f"quantisation must be one of {', '.join(EXPERT_TYPES)}": self.quantisation in EXPERT_TYPES,
            f"shards must lie between 1 and {MAX_SHARDS}": 1 <= self.shards <= MAX_SHARDS,
            "seed must not be negative": self.seed >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)

    def has_full_attention(self, layer: int) -> bool:
        """Says whether a layer keeps a KV cache; the MTP layer, which comes last, does."""
        return layer >= self.layers or (layer + 1) % FULL_ATTENTION_INTERVAL == 0


def layout(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names every tensor of a model, in the order of the file.

    Dimensions are in numpy's order, (experts, outputs, inputs); a GGUF file lists them the other way round.
    """
    width, ff, experts = shape.embedding, shape.expert_ff, shape.experts
    keys, values = KEY_HEADS * STATE_SIZE, VALUE_HEADS * STATE_SIZE
    linear_attention = {
        "attn_qkv.weight": (2 * keys + values, width),
        "attn_gate.weight": (values, width),
        "ssm_conv1d.weight": (2 * keys + values, CONV_KERNEL),
        "ssm_dt.bias": (VALUE_HEADS,),
        "ssm_a": (VALUE_HEADS,),
        "ssm_beta.weight": (VALUE_HEADS, width),
        "ssm_alpha.weight": (VALUE_HEADS, width),
        "ssm_norm.weight": (STATE_SIZE,),
        "ssm_out.weight": (width, values),
    }
    full_attention = {
        "attn_q.weight": (2 * HEADS * HEAD_SIZE, width),  # the query and its output gate
        "attn_k.weight": (KV_HEADS * HEAD_SIZE, width),
        "attn_v.weight": (KV_HEADS * HEAD_SIZE, width),
        "attn_q_norm.weight": (HEAD_SIZE,),
        "attn_k_norm.weight": (HEAD_SIZE,),
        "attn_output.weight": (width, HEADS * HEAD_SIZE),
    }
    into_experts = ["gate_up"] if shape.merged_gate_up else ["gate", "up"]
    feed_forward: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp.weight": (experts, width),
        **{f"ffn_{part}_exps.weight": (experts, 2 * ff // len(into_experts), width) for part in into_experts},
        "ffn_down_exps.weight": (experts, width, ff),
        "ffn_gate_inp_shexp.weight": (width,),
        "ffn_gate_shexp.weight": (ff, width),
        "ffn_up_shexp.weight": (ff, width),
        "ffn_down_shexp.weight": (width, ff),
    }
    next_token: dict[str, tuple[int, ...]] = {
        "nextn.eh_proj.weight": (width, 2 * width),
        **{f"nextn.{part}.weight": (width,) for part in ("enorm", "hnorm", "shared_head_norm")},
    }
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocabulary, width),
        "output.weight": (shape.vocabulary, width),
        "output_norm.weight": (width,),
    }
    for layer in range(shape.layers + shape.mtp):
        block = {
            "attn_norm.weight": (width,),
            **(full_attention if shape.has_full_attention(layer) else linear_attention),
            "post_attention_norm.weight": (width,),
            **feed_forward,
            **(next_token if layer == shape.layers else {}),
        }
        tensors |= {f"blk.{layer}.{part}": dimensions for part, dimensions in block.items()}
    return tensors


def write(path: Path, shape: Shape) -> list[Path]:
    """Writes a model to `path` and returns the files, in the order in which an engine reads them.

    Shards are named after `path`: `NAME-00001-of-00003.gguf`, and so on. Existing files are overwritten.
    Raises OSError.
    """
    writer = GGUFWriter(path, ARCHITECTURE)
    _add_metadata(writer, shape)
    _add_tokenizer(writer, shape.vocabulary)
    tensors = layout(shape)
    for index, (name, dimensions) in enumerate(tensors.items()):
        if index * shape.shards // len(tensors) == len(writer.tensors):
            # By hand: the writer's own limits, in tensors or bytes, cannot promise a number of files.
            writer.tensors.append({})
        kind = _type(shape, name, dimensions)
        writer.add_tensor(name, _pack(_values(shape, name, dimensions), kind), raw_dtype=kind)
    files = writer.format_shard_names(path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return files


def _add_metadata(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_type("model")
    writer.add_name("moehost synthetic")
    writer.add_file_type(LlamaFileType[f"MOSTLY_{shape.quantisation}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    counts = {
        "context_length": CONTEXT,
        "block_count": shape.layers + shape.mtp,
        "embedding_length": shape.embedding,
        "full_attention_interval": FULL_ATTENTION_INTERVAL,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_SIZE,
        "attention.value_length": HEAD_SIZE,
        "rope.dimension_count": ROPE_SIZE,
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_ff,
        "expert_shared_feed_forward_length": shape.expert_ff,
        "ssm.conv_kernel": CONV_KERNEL,
        "ssm.state_size": STATE_SIZE,
        "ssm.group_count": KEY_HEADS,
        "ssm.time_step_rank": VALUE_HEADS,
        "ssm.inner_size": VALUE_HEADS * STATE_SIZE,
    }
    if shape.mtp:
        counts["nextn_predict_layers"] = 1
    for key, count in counts.items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", count)
    writer.add_rope_dimension_sections(ROPE_SECTIONS)
    writer.add_rope_freq_base(1e7)
    writer.add_layer_norm_rms_eps(1e-6)


def _add_tokenizer(writer: GGUFWriter, vocabulary: int) -> None:
    # Every byte has a letter, as in GPT-2: printable Latin-1 stands for itself, the rest begins at U+0100.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(BYTES))
    letters = [chr(byte if byte in printable else BYTES + next(others)) for byte in range(BYTES)]
    space = letters[ord(" ")]
    merges = [
        *((syllable[0], syllable[1]) for syllable in SYLLABLES),
        *((space, syllable) for syllable in SYLLABLES),
        *((space + a, SYLLABLES[i - shift]) for shift in range(len(SYLLABLES)) for i, a in enumerate(SYLLABLES)),
    ][: vocabulary - BYTES - len(CONTROL_TOKENS)]
    tokens = [*letters, *(left + right for left, right in merges), *CONTROL_TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    control = len(CONTROL_TOKENS)
    writer.add_token_types([TokenType.NORMAL] * (vocabulary - control) + [TokenType.CONTROL] * control)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _type(shape: Shape, name: str, dimensions: tuple[int, ...]) -> GGMLQuantizationType:
    if name.endswith("_exps.weight"):
        return GGMLQuantizationType[shape.quantisation]
    # The engines' converters keep vectors, routers and convolutions in full precision.
    small = len(dimensions) == 1 or name.endswith(("ffn_gate_inp.weight", "ssm_conv1d.weight"))
    return GGMLQuantizationType.F32 if small else GGMLQuantizationType.F16


def _values(shape: Shape, name: str, dimensions: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.ones(dimensions, np.float32)
    if "_gate_up_" in name:
        half = dimensions[0], dimensions[1] // 2, dimensions[2]
        names = [name.replace("_gate_up_", part) for part in ("_gate_", "_up_")]
        return np.concatenate([_values(shape, part, half) for part in names], axis=1)
    # One stream per tensor, so that the variants of a model share their weights.
    random = np.random.default_rng([shape.seed, crc32(name.encode())])
    values = random.standard_normal(dimensions, np.float32)
    if not name.endswith((".ssm_a", ".ssm_dt.bias", "token_embd.weight")):
        values /= np.float32(np.sqrt(dimensions[-1]))
    match name.removeprefix("blk.").lstrip("0123456789."):
        case "ssm_a":
            values = -np.exp(values)  # a decay
        case "token_embd.weight":
            values[:, 0] = CONSTANT
        case "output.weight":
            values *= 2
            values[:, 0] = PENALTY
            values[BYTES : -len(CONTROL_TOKENS), 0] = 0
        case "nextn.eh_proj.weight":
            values[:, : shape.embedding] = np.eye(shape.embedding)
            values[:, shape.embedding :] /= 4
            values[0, shape.embedding :] = 0
        case "attn_output.weight" | "ssm_out.weight" | "ffn_down_exps.weight" | "ffn_down_shexp.weight":
            values /= np.float32(np.sqrt(2 * shape.layers))  # or the layers would drown the embedding
            values[..., 0, :] = 0
    return values


def _pack(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.generic]:
    if kind != GGMLQuantizationType.IQ4_NL:
        return gguf.quants.quantize(values, kind)
    # The library reads this type but does not write it: 32 values, a scale and the nearest of 16 levels each.
    levels = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    scaled = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, scaled).astype(np.uint8)
    packed = np.concatenate([scales.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1)
    return packed.reshape(*values.shape[:-1], -1)
