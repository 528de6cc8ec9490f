"""The memory ledger: what each device holds under a placement, and what is free.

All formulas are the engines' own or were compared with what an engine printed; see each function.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moehost.engine import CHECKPOINTS, PROMPT_CACHE_MIB, Dialect
from moehost.hardware import Node
from moehost.model import Model
from moehost.rules import Rule, device_of
from moehost.worker import Device

MIB = 1 << 20

CUDA_CONTEXT_MIB = 600  # what the driver and the kernels take on a card before anything is loaded
MARGIN_MIB = 1024
KV_PADDING = 256  # rows


@dataclass(frozen=True, slots=True)
class Memory:
    """What a service asks of memory beside weights.

    + context: tokens of all slots together; parallel: slots
    + type_k, type_v: types of the KV cache, keys of `model.KV_BYTES`
    + mtp: whether the multi-token-prediction layer is loaded
    + margins_mib: what must stay free on each GPU, the last one standing for all further ones
    """

    context: int
    parallel: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    dialect: Dialect = "ik"
    mtp: bool = False
    margins_mib: tuple[int, ...] = (MARGIN_MIB,)

    def margin_mib(self, gpu: int) -> int:
        """What must stay free on this GPU."""
        return self.margins_mib[min(gpu, len(self.margins_mib) - 1)]

    def rows(self, window: int, ubatch: int) -> int:
        """Rows of a layer's KV cache: llama.cpp keeps only a window's, ik_llama.cpp those of the whole context."""
        rows = self.context
        if window and self.dialect == "llama.cpp":
            rows = min(rows, window * self.parallel + ubatch)
        return math.ceil(rows / KV_PADDING) * KV_PADDING


@dataclass(frozen=True, slots=True)
class Row:
    """One device of the ledger, in whole MiB, rounded up.

    + dense_mib: all weights but routed experts; on the CPU the embeddings, too
    + compute_mib: the engine's compute buffer; context_mib: the CUDA context
    + cache_mib: prompt cache and context checkpoints, on the CPU
    """

    device: str
    capacity_mib: int
    dense_mib: int = 0
    experts_mib: int = 0
    kv_mib: int = 0
    state_mib: int = 0
    compute_mib: int = 0
    context_mib: int = 0
    cache_mib: int = 0
    margin_mib: int = 0

    @property
    def used_mib(self) -> int:
        """What the plan puts there."""
        used = self.dense_mib + self.experts_mib + self.kv_mib + self.state_mib + self.compute_mib
        return used + self.context_mib + self.cache_mib

    @property
    def free_mib(self) -> int:
        """What is left; below 0 is what lacks."""
        return self.capacity_mib - self.used_mib - self.margin_mib

    def to_json(self) -> dict[str, Any]:
        """The contract's row: a GPU's compute counts its context in, the CPU's cache all that is neither weights
        nor free."""
        weights = {"dense_mib": self.dense_mib, "experts_mib": self.experts_mib}
        head = {"device": self.device, "capacity_mib": self.capacity_mib, **weights}
        if self.device == "CPU":
            held = self.capacity_mib - self.dense_mib - self.experts_mib - self.free_mib
            return {**head, "cache_mib": held, "free_mib": self.free_mib}
        return {
            **head,
            "kv_mib": self.kv_mib,
            "state_mib": self.state_mib,
            "compute_mib": self.compute_mib + self.context_mib,
            "margin_mib": self.margin_mib,
            "free_mib": self.free_mib,
        }


def compute_bytes(model: Model, memory: Memory, ubatch: int, carried_bytes: int, on_gpu: bool = True) -> int:
    """The compute buffer of a device: the larger of what the layers and what the logits of one ubatch take.

    Layers need a copy of the experts of one CPU-side layer (`carried_bytes`, for the chunks that go to the GPU), the
    FFN's inner and outer activations, two hidden states, and the F16 mask. Logits need one F32 row of the vocabulary
    per token, and hidden states: one where a gated delta net shapes the graph, else two, and on a GPU two more, its
    input and the copy of it.

    Compared with published buffers: Qwen3.6-35B with ubatch 4096 and context 150000, 3976 MiB of logits (equal) and
    1982 MiB without them (+2.2 %). With those of ik_llama.cpp 8337e4cd on the CPU at ubatch 2048, all equal:
    Qwen3.5-397B 1972 MiB, Qwen3-Next-80B 1203, Qwen3-235B 1251, MiniMax-M2 1611, Llama-3-70B 1130. Where layers
    outweigh logits (a small vocabulary, a long context), the engine's allocator may leave gaps of up to one attention
    width (heads times head size): 0 to 10 % were seen on the CPU, and no rule for them.
    """
    mask = memory.rows(0, ubatch)
    if any(layer.window for layer in model.layers):
        mask += memory.rows(1, ubatch)
    hidden_states = (1 if model.state_bytes else 2) + (2 if on_gpu else 0)
    logits = 4 * (model.vocabulary + hidden_states * model.hidden)
    return max(carried_bytes + activation_bytes(model, ubatch) + 2 * ubatch * mask, ubatch * logits)


def draft_bytes(model: Model, memory: Memory, ubatch: int, on_gpu: bool = True) -> tuple[float, int]:
    """KV cache and compute buffer of the second context that ik_llama.cpp makes for multi-token prediction.

    It stands beside the first one, which has the prediction layer in its cache, too, on the output layer's device.
    Equal to what ik_llama.cpp 8337e4cd printed for Qwen3.5-397B on the CPU: 32 MiB at context 16384 in F16, 68 MiB at
    65536 in Q8_0, and compute buffers of 493 and 1972 MiB at ubatch 512 and 2048.
    """
    if not memory.mtp:
        return 0, 0
    rows = memory.rows(0, ubatch)
    kv = sum(layer.kv_bytes(rows, memory.type_k, memory.type_v) for layer in model.layers if layer.is_mtp)
    return kv, compute_bytes(model, memory, ubatch, 0, on_gpu)


def activation_bytes(model: Model, ubatch: int) -> int:
    """What passes through the widest FFN of the model for one ubatch, in F32."""
    widest = max(layer.ffn_branches * (layer.ffn_width + model.hidden) for layer in model.layers)
    return 4 * ubatch * (widest + 2 * model.hidden)


def carried_bytes(model: Model, cpu_layers: Sequence[int]) -> int:
    """The largest layer of experts on the CPU, whose copy a chunk on the GPU needs."""
    return max((model.layers[index].routed_bytes for index in cpu_layers), default=0)


@dataclass(frozen=True)
class Assignment:
    """Which device each tensor of the loaded layers goes to, and what follows from it.

    + tensors: device by tensor name; those of layers that are not loaded are missing
    + experts: device by layer that has routed experts; a layer on several devices counts for the CPU, if that is one
    + torn: the layers whose experts lie on several devices
    """

    tensors: Mapping[str, str]
    experts: Mapping[int, str]
    torn: tuple[int, ...]


def assign(model: Model, layer_devices: Sequence[str], rules: Sequence[Rule], cpu_moe: bool, mtp: bool) -> Assignment:
    """Applies rules as the engine does: the first rule, then `--cpu-moe`, then the layer's own device.

    `layer_devices` names the device of each layer and, last, of the output layer. `--cpu-moe` leaves the experts of
    multi-token-prediction layers where they are, and embeddings stay on the CPU. The biases of experts are counted
    with their weights, although ik_llama.cpp leaves those few MiB on the GPU.
    """
    tensors: dict[str, str] = {}
    experts: dict[int, set[str]] = defaultdict(set)
    for part in model.parts:
        layer = None if part.layer is None else model.layers[part.layer]
        if layer is not None and layer.is_mtp and not mtp:
            continue
        device = device_of(part.name, rules)
        if device is None and layer is None:
            device = "CPU" if part.role == "input" else layer_devices[-1]
        elif device is None and layer is not None:
            on_cpu = cpu_moe and part.role == "routed" and not layer.is_mtp
            device = "CPU" if on_cpu else layer_devices[layer.index]
        tensors[part.name] = str(device)
        if part.role == "routed" and layer is not None and not layer.is_mtp:
            experts[layer.index].add(str(device))
    torn = tuple(index for index, devices in experts.items() if len(devices) > 1)
    # min: "CPU" sorts before "CUDA0".
    return Assignment(tensors, {index: min(experts[index]) for index in sorted(experts)}, torn)


def account(
    model: Model,
    node: Node,
    memory: Memory,
    ubatch: int,
    layer_devices: Sequence[str],
    assignment: Assignment,
    remotes: Sequence[Device] = (),
) -> list[Row]:
    """The ledger of an assignment, GPUs first, then devices of workers, the CPU last; rows may be overdrawn."""
    dense: dict[str, float] = defaultdict(float)
    experts: dict[str, float] = defaultdict(float)
    kv: dict[str, float] = defaultdict(float)
    state: dict[str, float] = defaultdict(float)
    for part in model.parts:
        if part.name in assignment.tensors:
            (experts if part.role == "routed" else dense)[assignment.tensors[part.name]] += part.size_bytes
    if model.is_tied:
        dense[layer_devices[-1]] += model.output_bytes
    for layer in model.layers if memory.mtp else model.main_layers:
        device = layer_devices[layer.index]
        dense[device] += layer.derived_bytes
        kv[device] += layer.kv_bytes(memory.rows(layer.window, ubatch), memory.type_k, memory.type_v)
        state[device] += layer.state_bytes * memory.parallel
    draft_kv, draft_compute = draft_bytes(model, memory, ubatch, on_gpu=bool(node.gpus))
    kv[layer_devices[-1]] += draft_kv
    on_cpu = [index for index, device in assignment.experts.items() if device == "CPU"]
    carried = carried_bytes(model, on_cpu)

    def row(device: str, capacity_mib: int, compute: int) -> Row:
        compute += draft_compute if device == layer_devices[-1] else 0
        parts = (dense[device], experts[device], kv[device], state[device], compute)
        return Row(device, capacity_mib, *(math.ceil(part / MIB) for part in parts))

    rows = []
    for index, gpu in enumerate(node.gpus):
        # Every card keeps room for the copies: which of them offloads is the scheduler's choice.
        compute = compute_bytes(model, memory, ubatch, carried)
        used = row(f"CUDA{index}", gpu.vram_mib, compute)
        rows.append(replace(used, context_mib=CUDA_CONTEXT_MIB, margin_mib=memory.margin_mib(index)))
    for remote in remotes:
        is_used = remote.name in layer_devices
        compute = compute_bytes(model, memory, ubatch, 0, bool(remote.gpu)) if is_used else 0
        used = row(remote.name, remote.capacity_mib, compute)
        rows.append(replace(used, context_mib=remote_context_mib(remote), margin_mib=remote_margin_mib(remote)))
    host_compute = compute_bytes(model, memory, ubatch, 0, on_gpu=False)
    if node.gpus:  # logits and masks are on the cards, the experts' activations here
        host_compute = activation_bytes(model, ubatch) if on_cpu else 0
    rows.append(replace(row("CPU", node.memory_mib, host_compute), margin_mib=host_margin_mib(node)))
    return rows


def host_margin_mib(node: Node) -> int:
    """What the system, the server itself and the staging of uploads keep of the host's memory."""
    return min(4096, node.memory_mib // 20)


def remote_context_mib(device: Device) -> int:
    """What a worker's device has taken before anything is loaded."""
    return CUDA_CONTEXT_MIB if device.gpu else 0


def remote_margin_mib(device: Device) -> int:
    """What a worker's device keeps free: of its memory, what the node itself needs."""
    return MARGIN_MIB if device.gpu else host_margin_mib(device.worker.node)


def with_host_cache(row: Row, model: Model, memory: Memory) -> tuple[Row, int, int]:
    """The CPU's row with prompt cache and checkpoints, at the engine's defaults or at what is left.

    Returns the row, the prompt cache in MiB, and the checkpoints per slot: copies of its recurrent state, each as
    large as the state itself.
    """
    checkpoint_mib = math.ceil(model.state_bytes / MIB) * memory.parallel
    checkpoints = CHECKPOINTS
    while checkpoints and checkpoints * checkpoint_mib > row.free_mib // 2:
        checkpoints //= 2
    prompt_cache_mib = max(min(PROMPT_CACHE_MIB, (row.free_mib - checkpoints * checkpoint_mib) // 256 * 256), 0)
    return replace(row, cache_mib=prompt_cache_mib + checkpoints * checkpoint_mib), prompt_cache_mib, checkpoints
