"""Predicts tokens per second for a placement, as a range, from constants that measurements of a node replace.

Decode, per token, with b the routed bytes that one layer reads:

    t = t_fixed + n_cpu * (b / BW_cpu + a) + n_gpu * (b / BW_gpu + g)

where t_fixed is the dense bytes over their device's bandwidth plus an overhead per layer (kernel launches, state
updates, sampling). Prompts go through in chunks of one ubatch. A chunk that reaches the engine's threshold carries
all CPU-side experts over PCIe to the first GPU and computes there; a shorter one computes them on the CPU.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moehost.hardware import Node
from moehost.model import Layer, Model
from moehost.speed_constants import PUBLISHED as PUBLISHED
from moehost.speed_constants import Constants as Constants
from moehost.worker import SHORT_CONTEXT, Device, RemoteLoad

# Tokens per expert from which ik_llama.cpp (`offload-batch-size`) and tokens per chunk from which llama.cpp
# (GGML_OP_OFFLOAD_MIN_BATCH) carry weights to the GPU, unless told otherwise.
DEFAULT_OFFLOAD_BATCH = 32
MOST_TOKENS = 1 << 20
# Half-width of a prediction with workers at least, relative: no run of a large model over nodes went into it.
REMOTE_SPREAD = 0.35


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """What one token asks of a GPU: dense and resident expert bytes, layers with experts, weights it goes through."""

    dense_bytes: float = 0.0
    expert_bytes: float = 0.0
    expert_layers: int = 0
    elements: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one token asks of each part of a machine, and what a long prompt carries across.

    + cpu_dense_bytes, cpu_dense_elements: dense part computed on the CPU, where there is no GPU
    + cpu_expert_bytes, cpu_expert_elements: routed experts that a token reads from RAM, in `cpu_expert_layers` layers
    + cpu_experts_total_bytes: all routed experts in RAM
    """

    gpus: tuple[GpuLoad, ...]
    cpu_dense_bytes: float
    cpu_dense_elements: float
    cpu_expert_bytes: float
    cpu_expert_elements: float
    cpu_expert_layers: int
    cpu_experts_total_bytes: float
    attention_layers: int
    recurrent_layers: int
    expert_count: int
    experts_used: int
    remotes: tuple[RemoteLoad, ...] = ()

    @classmethod
    def of(
        cls,
        model: Model,
        gpus: int,
        layer_devices: Sequence[str],
        experts: Mapping[int, str],
        remotes: Sequence[Device] = (),
    ) -> Load:
        """The load of a placement on a machine with this many GPUs, and on devices of workers.

        `layer_devices` names the device of each layer and, last, of the output layer, `experts` that of each layer
        that has routed ones. Layers of multi-token prediction are left out.
        """
        away: dict[str, list[Layer]] = {device.name: [] for device in remotes}
        for layer in model.main_layers:
            if layer_devices[layer.index] in away:
                away[layer_devices[layer.index]].append(layer)
        here = [layer for layer in model.main_layers if layer_devices[layer.index] not in away]
        dense = {device: [0.0, 0.0] for device in layer_devices}
        dense[layer_devices[-1]][0] += model.output_bytes
        moved = {device: [0.0, 0.0, 0] for device in experts.values()}
        for layer in model.main_layers:
            dense[layer_devices[layer.index]][0] += layer.resident_bytes
            dense[layer_devices[layer.index]][1] += layer.dense_elements
            if layer.index in experts:
                sums = moved[experts[layer.index]]
                sums[0] += layer.routed_bytes * model.active_share
                sums[1] += layer.routed_elements * model.active_share
                sums[2] += 1
        loads = []
        for device in (f"CUDA{index}" for index in range(gpus)):
            (dense_bytes, elements), (bytes_, routed, count) = dense.get(device, (0, 0)), moved.get(device, (0, 0, 0))
            loads.append(GpuLoad(dense_bytes, bytes_, int(count), elements + routed))
        on_cpu = moved.get("CPU", [0.0, 0.0, 0])
        recurrent = sum(1 for layer in here if layer.state_bytes)
        return cls(
            gpus=tuple(loads),
            cpu_dense_bytes=dense.get("CPU", (0.0, 0.0))[0],
            cpu_dense_elements=dense.get("CPU", (0.0, 0.0))[1],
            cpu_expert_bytes=on_cpu[0],
            cpu_expert_elements=on_cpu[1],
            cpu_expert_layers=int(on_cpu[2]),
            cpu_experts_total_bytes=sum(
                model.layers[i].routed_bytes for i, where in experts.items() if where == "CPU"
            ),
            attention_layers=len(here) - recurrent,
            recurrent_layers=recurrent,
            expert_count=model.expert_count,
            experts_used=model.experts_used,
            remotes=tuple(_remote(model, device, away[device.name]) for device in remotes if away[device.name]),
        )


def _remote(model: Model, device: Device, layers: Sequence[Layer]) -> RemoteLoad:
    """What these layers ask of the device that holds them whole."""
    routed = sum(layer.routed_bytes for layer in layers)
    elements = sum(layer.dense_elements + layer.routed_elements * model.active_share for layer in layers)
    recurrent = sum(1 for layer in layers if layer.state_bytes)
    return RemoteLoad(
        device=device,
        dense_bytes=sum(layer.resident_bytes for layer in layers),
        expert_bytes=routed * model.active_share,
        experts_total_bytes=routed,
        elements=elements,
        attention_layers=len(layers) - recurrent,
        recurrent_layers=recurrent,
        expert_layers=sum(1 for layer in layers if layer.routed_bytes),
        state_bytes=sum(layer.state_bytes for layer in layers),
        expert_share=model.active_share,
        hidden=model.hidden,
    )


@dataclass(frozen=True, slots=True)
class Range:
    """A predicted rate in tokens per second with the range it should fall into."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Prompts:
    """How an engine takes prompts: tokens per chunk, and the chunk from which experts go to the GPU, in tokens."""

    ubatch: int
    threshold: int
    threads: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A request: tokens of its prompt, nothing of it cached, and of its answer."""

    prompt_tokens: int
    answer_tokens: int

    def thresholds(self, ubatch: int) -> list[int]:
        """Thresholds that differ for this request: all of its chunks go to the GPU, the larger ones only, or none."""
        chunks = {min(ubatch, self.prompt_tokens), self.prompt_tokens % ubatch} - {0}
        return sorted(chunks | {max(chunks) + 1})


@dataclass(frozen=True)
class Speed:
    """Predicts for one node."""

    node: Node
    constants: Constants = PUBLISHED

    def decode_s(self, load: Load) -> float:
        """Expected time of one token in seconds, the engine's graph warm and the context short."""
        experts = self.read_s(load) + load.cpu_expert_layers * self.constants.cpu_layer_s
        for index, gpu in enumerate(load.gpus):
            experts += gpu.expert_bytes / self._gpu_bytes_s(index) + gpu.expert_layers * self.constants.gpu_layer_s
        remote_s = sum(each.decode_s(self.constants) for each in load.remotes)
        return experts + self._dense_s(load) + self.overhead_s(load) + remote_s + self.link_s(load)

    def link_s(self, load: Load) -> float:
        """What a token costs on the way to workers and back."""
        return sum(each.link_s(1, SHORT_CONTEXT) for each in load.remotes)

    def read_s(self, load: Load) -> float:
        """What a token costs in bytes that come from RAM."""
        return (load.cpu_dense_bytes + load.cpu_expert_bytes) / self._cpu_bytes_s

    def decode(self, load: Load, spread: float) -> Range:
        """Predicted decode rate.

        The range holds what moving the resident layers may save less or more than expected, links that take twice
        or half their time, and is at least `spread` wide to either side, relative to the expected rate; wider with
        workers.
        """
        if load.remotes:
            spread = max(spread, REMOTE_SPREAD)
        expected_s = self.decode_s(load)
        saved_s = sum(
            self.saving_s(index, gpu.expert_bytes, gpu.expert_layers) for index, gpu in enumerate(load.gpus)
        )
        slow_s = expected_s + saved_s * (1 - self.constants.saving_low) + self.link_s(load)
        fast_s = expected_s - saved_s * (self.constants.saving_high - 1) - self.link_s(load) / 2
        slow_s, fast_s = sorted((slow_s, fast_s), reverse=True)
        return Range(
            low=min(1 / slow_s, (1 - spread) / expected_s),
            expected=1 / expected_s,
            high=max(1 / max(fast_s, expected_s / 2), (1 + spread) / expected_s),
        )

    def spread(self, model: Model) -> float:
        """How far a prediction may be off at least, relative, by how alike the measured machine and model are.

        The mean of the 28 published runs is good to 2 %; another machine or model to about 15 %, a machine without a
        GPU or an unknown architecture to about 35 %.
        """
        if self.constants.spread:
            return self.constants.spread
        if not self.node.gpus or not model.is_known:
            return 0.35
        is_same = "9175F" in self.node.cpu.model and "RTX PRO 6000" in self.node.gpus[0].name
        return 0.02 if is_same and model.architecture == "qwen35moe" else 0.15

    def saving_s(self, gpu: int, expert_bytes: float, layers: int = 1) -> float:
        """What a token gains by reading these routed bytes on a GPU and not on the CPU; negative for a slow card."""
        on_cpu = expert_bytes / self._cpu_bytes_s + layers * self.constants.cpu_layer_s
        return on_cpu - expert_bytes / self._gpu_bytes_s(gpu) - layers * self.constants.gpu_layer_s

    def prompt_s(self, load: Load, tokens: int, prompts: Prompts) -> float:
        """Expected time of a prompt in seconds, nothing of it cached."""
        full, rest = divmod(tokens, prompts.ubatch)
        rest_s = self._chunk_s(load, rest, prompts) if rest else 0.0
        link_s = sum(each.prompt_link_s(tokens, prompts.ubatch) for each in load.remotes)
        return full * self._chunk_s(load, prompts.ubatch, prompts) + rest_s + link_s

    def answer_s(self, load: Load, workload: Workload, prompts: Prompts) -> float:
        """Expected time of a request in seconds; a sum over everything in the load, where the threshold is given."""
        return self.prompt_s(load, workload.prompt_tokens, prompts) + workload.answer_tokens * self.decode_s(load)

    def break_even_tokens(self, load: Load, threads: int) -> int | None:
        """The chunk, in tokens, from which carrying experts to the first GPU is faster; None where it never is."""
        if not load.gpus or not load.cpu_experts_total_bytes:
            return None
        on_gpu_s = self.constants.prompt_gpu_factor * 2 * load.cpu_expert_elements / self._gpu_flop_s(0)
        if on_gpu_s >= self._prompt_cpu_s(load, threads):
            return None

        def is_faster(tokens: int) -> bool:
            there, here = (Prompts(tokens, threshold, threads) for threshold in (tokens, tokens + 1))
            return self._chunk_s(load, tokens, there) <= self._chunk_s(load, tokens, here)

        # What is carried is the same for every chunk, and what the CPU takes grows with it.
        chunks = range(1, MOST_TOKENS)
        found = bisect_left(chunks, True, key=is_faster)
        return chunks[found] if found < len(chunks) else None

    def _chunk_s(self, load: Load, tokens: int, prompts: Prompts) -> float:
        factor = self.constants.prompt_gpu_factor
        on_gpu = sum(2 * gpu.elements / self._gpu_flop_s(index) for index, gpu in enumerate(load.gpus)) * factor
        remote_s = sum(each.chunk_s(self.constants, tokens) for each in load.remotes)
        base_s = self._dense_s(load) + self.overhead_s(load) + tokens * on_gpu + remote_s
        if load.gpus and tokens >= prompts.threshold:
            carried_s = load.cpu_experts_total_bytes / (self.node.gpus[0].pcie_gb_s * 1e9)
            computed_s = tokens * 2 * load.cpu_expert_elements / self._gpu_flop_s(0)
            return base_s + factor * (carried_s + computed_s)
        touched = 1 - (1 - load.experts_used / load.expert_count) ** tokens if load.expert_count else 0.0
        return base_s + touched * self._prompt_read_s(load) + tokens * self._prompt_cpu_s(load, prompts.threads)

    def _prompt_read_s(self, load: Load) -> float:
        bytes_s = self.node.memory_bandwidth_gb_s * 1e9 * self.constants.prompt_cpu_share
        return self.constants.prompt_cpu_factor * load.cpu_experts_total_bytes / bytes_s

    def _prompt_cpu_s(self, load: Load, threads: int) -> float:
        """What one more token of a chunk costs on the CPU; more threads than cores do not help."""
        flop_s = self.constants.core_flop_s * min(threads, self.node.physical_cores)
        return self.constants.prompt_cpu_factor * 2 * (load.cpu_expert_elements + load.cpu_dense_elements) / flop_s

    def gpu_read_s(self, gpu: int, size_bytes: float) -> float:
        """What reading these bytes once costs on a GPU."""
        return size_bytes / self._gpu_bytes_s(gpu)

    def _dense_s(self, load: Load) -> float:
        return sum(self.gpu_read_s(index, gpu.dense_bytes) for index, gpu in enumerate(load.gpus))

    def overhead_s(self, load: Load) -> float:
        """What a token costs beside all bytes and experts: launches, state updates, sampling."""
        if not load.gpus:
            return (load.attention_layers + load.recurrent_layers) * self.constants.cpu_only_layer_s
        attention_s = load.attention_layers * self.constants.attention_s
        return attention_s + load.recurrent_layers * self.constants.recurrent_s

    @property
    def _cpu_bytes_s(self) -> float:
        return self.node.memory_bandwidth_gb_s * 1e9 * self.constants.cpu_share

    def _gpu_bytes_s(self, index: int) -> float:
        return self.node.gpus[index].bandwidth_gb_s * 1e9 * self.constants.gpu_share

    def _gpu_flop_s(self, index: int) -> float:
        return self.node.gpus[index].bandwidth_gb_s * 1e9 * self.constants.gpu_flop_per_byte


def threshold_tokens(model: Model, dialect: str, offload_batch: int = DEFAULT_OFFLOAD_BATCH) -> int:
    """The chunk from which the engine carries experts to the GPU, in tokens.

    ik_llama.cpp counts tokens per expert (ggml_backend_cuda_offload_op: tokens * used >= batch * experts), llama.cpp
    tokens per chunk.
    """
    if dialect == "ik" and model.experts_used:
        return -(-offload_batch * model.expert_count // model.experts_used)
    return offload_batch
