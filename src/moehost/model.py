"""From a GGUF header to meaning: which bytes are dense, shared or routed, and what a context costs, layer by layer.

Sizes and kinds come from the tensors themselves; metadata adds what tensors do not show. Formulas follow the
engines' own: `llama_model::cache_size` and `llama_hparams::n_embd_v_s` of ik_llama.cpp 8337e4cd.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from moehost.gguf import Array, GgufSet, Tensor

# Layouts whose KV cache and state are understood. Any other architecture is planned from its tensors' sizes, with
# the KV cache of full attention, and says so.
KNOWN = {
    *("llama", "llama4", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe"),
    *("deepseek2", "glm4", "glm4moe", "gpt-oss", "minimax-m2"),
}
# Architectures with a window on all but every n-th layer: n, and the window where metadata does not give it.
WINDOWS = {"gpt-oss": (2, 128), "llama4": (4, 8192)}
MAX_LAYERS = 512  # as in the engines

# Bytes of one element of the KV cache; quantised types come in blocks of 32 elements with their scales.
KV_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q6_0": 26 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}

Role = Literal["input", "output", "dense", "shared", "routed"]

_BLOCK = re.compile(r"blk[.]([0-9]{1,9})[.](.+)")
_ROUTED = re.compile(r"ffn_(gate_up|gate|up|down)_exps[.]")


class ModelError(ValueError):
    """A model that cannot be planned; one line that names what is wrong with its header."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor with its place: `layer` is None outside the repeating layers."""

    name: str
    layer: int | None
    role: Role
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What one repeating layer weighs and costs.

    + dense_bytes, shared_bytes, routed_bytes: attention, norms, router and dense FFN; shared experts; all routed ones
    + derived_bytes: what the engine computes beside the file's tensors (the second form of MLA projections)
    + routed_elements, dense_elements: weights, not bytes; the work of a token grows with them
    + k_width, v_width: elements of the KV cache per token; 0 on a recurrent layer
    + window: tokens that attention looks back; 0 for all
    + state_bytes: recurrent state per slot
    + ffn_branches, ffn_width: how many FFN branches of which inner width a token goes through at once
    + is_mtp: a multi-token-prediction layer, which is only loaded on demand
    """

    index: int
    dense_bytes: int
    shared_bytes: int
    routed_bytes: int
    derived_bytes: int
    routed_elements: int
    dense_elements: int
    k_width: int
    v_width: int
    window: int
    state_bytes: int
    ffn_branches: int
    ffn_width: int
    is_mtp: bool

    @property
    def resident_bytes(self) -> int:
        """What follows the layer's attention to its device: all but the routed experts."""
        return self.dense_bytes + self.shared_bytes + self.derived_bytes

    def kv_bytes(self, rows: int, type_k: str, type_v: str) -> float:
        """The layer's KV cache for `rows` tokens, in bytes; the types are keys of `KV_BYTES`."""
        return rows * (self.k_width * KV_BYTES[type_k] + self.v_width * KV_BYTES[type_v])


@dataclass(frozen=True)
class Model:
    """A model as the planner sees it; sizes in bytes, `vocabulary` and `context_length` in tokens.

    `output_bytes` is what the output layer takes on its device: a model with tied embeddings has them twice.
    """

    name: str
    architecture: str
    layers: tuple[Layer, ...]
    parts: tuple[Part, ...]
    hidden: int
    vocabulary: int
    context_length: int
    expert_count: int
    experts_used: int
    embedding_bytes: int
    output_bytes: int
    output_elements: int
    size_bytes: int
    warnings: tuple[str, ...]

    @property
    def is_known(self) -> bool:
        """Whether the architecture's KV cache and state are understood, not assumed."""
        return self.architecture in KNOWN

    @cached_property
    def main_layers(self) -> tuple[Layer, ...]:
        """The layers that every token goes through: all but those of multi-token prediction."""
        return tuple(layer for layer in self.layers if not layer.is_mtp)

    @cached_property
    def expert_layers(self) -> tuple[int, ...]:
        """The indices of the main layers that have routed experts."""
        return tuple(layer.index for layer in self.main_layers if layer.routed_bytes)

    @property
    def has_mtp(self) -> bool:
        """Whether the file brings a multi-token-prediction layer."""
        return len(self.main_layers) < len(self.layers)

    @cached_property
    def is_tied(self) -> bool:
        """Whether the output layer is a copy of the embeddings."""
        return all(part.name != "output.weight" for part in self.parts)

    @property
    def active_share(self) -> float:
        """The part of a layer's routed experts that one token reads."""
        return self.experts_used / self.expert_count if self.expert_count else 0.0

    @property
    def routed_bytes(self) -> int:
        """All routed experts of the main layers."""
        return sum(layer.routed_bytes for layer in self.main_layers)

    @property
    def state_bytes(self) -> int:
        """Recurrent state of one slot, independent of the context; also the size of one context checkpoint."""
        return sum(layer.state_bytes for layer in self.main_layers)

    def kv_bytes_per_token(self, type_k: str = "f16", type_v: str | None = None) -> float:
        """KV cache of all main layers for one token, as if no layer had a window."""
        return sum(layer.kv_bytes(1, type_k, type_v or type_k) for layer in self.main_layers)

    @classmethod
    def from_gguf(cls, found: GgufSet) -> Model:
        """Understands a header; raises ModelError where it contradicts itself or lacks what every model has."""
        return _Reader(found).model()


class _Reader:
    """Turns one header into a model; holds what the many small questions have in common."""

    def __init__(self, found: GgufSet) -> None:
        self._found = found
        self._metadata = found.metadata
        self._architecture = self._text("general.architecture")
        self._warnings: list[str] = []
        self._blocks: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self._others: dict[str, Tensor] = {}
        for tensor in found.tensors:
            block = _BLOCK.fullmatch(tensor.name)
            if block is None:
                self._others[tensor.name] = tensor
            else:
                self._blocks[int(block[1])][block[2]] = tensor
        if not self._blocks or "token_embd.weight" not in self._others:
            raise ModelError(f"{self._name}: has no token_embd.weight or no blk.* tensors; it is no language model")
        if max(self._blocks) >= MAX_LAYERS:
            raise ModelError(f"{self._name}: names layer {max(self._blocks)}; no engine takes more than {MAX_LAYERS}")

    @property
    def _name(self) -> str:
        return self._found.headers[0].name

    def _text(self, key: str) -> str:
        value = self._metadata.get(key)
        if not isinstance(value, str):
            raise ModelError(f"{self._name}: {key} is missing or no text; the file is no model")
        return value

    def _count(self, key: str, default: int = 0, layer: int | None = None) -> int:
        """A whole number of the architecture's metadata; `layer` picks from what may be given per layer."""
        value: Any = self._metadata.get(f"{self._architecture}.{key}", default)
        if isinstance(value, tuple) and layer is not None:
            value = value[layer] if layer < len(value) else default
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise ModelError(f"{self._name}: {self._architecture}.{key} is {str(value)[:40]!r}, no sane count")
        return int(value)

    def model(self) -> Model:
        embedding = self._others["token_embd.weight"]
        output = self._others.get("output.weight", embedding)
        experts, used = self._experts()
        count = max(self._blocks) + 1
        first_mtp = self._count("block_count", count) - self._count("nextn_predict_layers")
        if first_mtp <= 0:
            raise ModelError(f"{self._name}: has no layers but those of multi-token prediction")
        layers = tuple(self._layer(index, used, index >= first_mtp) for index in range(count))
        words = self._metadata.get("tokenizer.ggml.tokens")
        vocabulary = words.length if isinstance(words, Array) and words.length else embedding.shape[-1]
        if self._architecture not in KNOWN:
            self._warnings.append(
                f"architecture {self._architecture[:40]!r} is not known: planned from tensor sizes, with a KV cache "
                "of full attention on every layer; verify by the engine's --dry-run"
            )
        if any(200 < tensor.type_id < 400 for tensor in self._found.tensors):
            self._warnings.append("repacked tensors (_R4, _R8): no CUDA kernels, so prompts stay on the CPU")
        return Model(
            name=str(self._metadata.get("general.name", self._name)),
            architecture=self._architecture,
            layers=layers,
            parts=tuple(self._parts()),
            hidden=embedding.shape[0],
            vocabulary=vocabulary,
            context_length=self._count("context_length"),
            expert_count=experts,
            experts_used=used,
            embedding_bytes=embedding.size_bytes,
            output_bytes=output.size_bytes,
            output_elements=_elements([output]),
            size_bytes=self._found.size_bytes,
            warnings=tuple(self._warnings),
        )

    def _experts(self) -> tuple[int, int]:
        """How many routed experts a layer has, by the tensors, and how many a token uses."""
        routed = [t for block in self._blocks.values() for part, t in block.items() if _ROUTED.match(part)]
        if not routed:
            return 0, 0
        count = max(tensor.shape[-1] for tensor in routed)
        used = self._count("expert_used_count")
        if not 0 < used <= count:
            used = count
            self._warnings.append(
                f"{self._architecture}.expert_used_count is not given: taken as all {count} experts"
            )
        return count, used

    def _parts(self) -> list[Part]:
        parts = []
        for name, tensor in self._others.items():
            role: Role = "input" if name.startswith(("token_embd", "per_layer_token_embd")) else "output"
            parts.append(Part(name, None, role, tensor.size_bytes))
        for index, block in self._blocks.items():
            parts += [Part(t.name, index, _role(part), t.size_bytes) for part, t in block.items()]
        return parts

    def _layer(self, index: int, used: int, is_mtp: bool) -> Layer:
        block = self._blocks.get(index, {})
        by_role: dict[Role, list[Tensor]] = defaultdict(list)
        for part, tensor in block.items():
            by_role[_role(part)].append(tensor)
        is_recurrent = any(part.startswith("ssm_") for part in block)
        k_width, v_width = (0, 0) if is_recurrent else self._kv_widths(index)
        routed_down = block.get("ffn_down_exps.weight")
        down = routed_down or block.get("ffn_down.weight")
        return Layer(
            index=index,
            dense_bytes=_bytes(by_role["dense"]),
            shared_bytes=_bytes(by_role["shared"]),
            routed_bytes=_bytes(by_role["routed"]),
            derived_bytes=self._derived_bytes(block),
            routed_elements=_elements(by_role["routed"]),
            dense_elements=_elements(by_role["dense"]) + _elements(by_role["shared"]),
            k_width=k_width,
            v_width=v_width,
            window=0 if is_mtp else self._window(index),
            state_bytes=self._state_bytes() if is_recurrent else 0,
            ffn_branches=used if routed_down else 1,
            ffn_width=down.shape[0] if down else 0,
            is_mtp=is_mtp,
        )

    def _kv_widths(self, index: int) -> tuple[int, int]:
        """Elements of K and V per token; MLA keeps one latent row for both."""
        if latent := self._count("attention.kv_lora_rank"):
            return latent + self._count("rope.dimension_count"), 0
        heads = self._count("attention.head_count", layer=index)
        kv_heads = self._count("attention.head_count_kv", heads, layer=index)
        head = self._others["token_embd.weight"].shape[0] // heads if heads else 0
        k_head, v_head = self._count("attention.key_length", head), self._count("attention.value_length", head)
        return kv_heads * k_head, kv_heads * v_head

    def _window(self, index: int) -> int:
        if self._architecture not in WINDOWS:
            return 0
        period, default = WINDOWS[self._architecture]
        return self._count("attention.sliding_window", default) or default if index % period < period - 1 else 0

    def _state_bytes(self) -> int:
        """A slot's state on one gated delta-net layer, in F32: the convolution's tail and a matrix per value head."""
        inner, rank = self._count("ssm.inner_size"), self._count("ssm.time_step_rank")
        channels = inner + 2 * self._count("ssm.state_size") * self._count("ssm.group_count")
        tail = max(self._count("ssm.conv_kernel") - 1, 0) * channels
        return 4 * (tail + (inner // rank) ** 2 * rank) if rank else 4 * tail

    def _derived_bytes(self, block: dict[str, Tensor]) -> int:
        """MLA needs its key-value projection whole and in two halves; the engine makes the missing form, in Q8_0."""
        whole = [block[part] for part in ("attn_kv_b.weight",) if part in block]
        halves = [block[part] for part in ("attn_k_b.weight", "attn_v_b.weight") if part in block]
        return 0 if whole and halves else _elements(whole + halves) * 34 // 32


def _role(part: str) -> Role:
    if _ROUTED.match(part):
        return "routed"
    return "shared" if "_shexp" in part else "dense"


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.size_bytes for tensor in tensors)


def _elements(tensors: Sequence[Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)
