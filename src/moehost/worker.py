"""Nodes that hold layers of another node's model: what they have, how far away they are, what a token costs there.

A worker's cards, or its memory, are devices of the same ledger, behind a link. What crosses that link was counted
with llama.cpp 0.7.0 on loopback (docs/rpc.md): per device and token one answer that is waited for, one hidden state
in F32 each way, about 5 kB of messages around it, and, where a layer has attention, one row of the F16 mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moehost.engine import Dialect
from moehost.hardware import Gpu, Node
from moehost.settings_rpc import Rpc
from moehost.speed_constants import Constants

# Payload in GB/s and round trip in seconds of networks whose speed nobody has measured: 94 % of what they are called,
# at most what one stream of TCP carries, and what two kernels and two programs that wake up usually take.
LINKS = {
    "1GbE": (0.117, 300e-6),
    "2.5GbE": (0.29, 250e-6),
    "10GbE": (1.15, 150e-6),
    "25GbE": (2.8, 100e-6),
    "40GbE": (4.0, 100e-6),
    "100GbE": (6.0, 80e-6),
}
MESSAGE_BYTES = 5000
# The context for which decode is predicted: the mask has a row of it.
SHORT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Link:
    """The way to a worker: GB/s of payload, and seconds of a round trip from program to program."""

    gb_s: float
    latency_s: float

    @classmethod
    def of(cls, kind: str, gb_s: float | None = None, latency_us: float | None = None) -> Link:
        """A link by what it is called in `LINKS`, with what was measured in place of what is assumed."""
        usual_gb_s, usual_s = LINKS[kind]
        return cls(gb_s or usual_gb_s, latency_us * 1e-6 if latency_us else usual_s)

    def s(self, size_bytes: float) -> float:
        """What one exchange of so many bytes takes."""
        return self.latency_s + size_bytes / (self.gb_s * 1e9)


@dataclass(frozen=True)
class Worker:
    """A node that holds layers. `endpoint` is HOST:PORT; `memory` says whether its cards or its RAM do."""

    name: str
    endpoint: str
    node: Node
    link: Link
    memory: Literal["auto", "cards", "ram"] = "auto"

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The cards that hold layers; none where its RAM does."""
        return () if self.memory == "ram" else self.node.gpus


@dataclass(frozen=True, slots=True)
class Device:
    """One card of a worker, or its memory.

    + name: in the ledger, and to llama.cpp: RPC0, RPC1 ... over all workers
    + index: among the devices of its worker, which ik_llama.cpp counts for each worker anew
    + gpu: the card; None for the memory
    """

    name: str
    index: int
    worker: Worker
    gpu: Gpu | None

    def flag(self, dialect: Dialect) -> str:
        """What the engine's `-dev` calls it."""
        return f"RPC{self.index}[{self.worker.endpoint}]" if dialect == "ik" else self.name

    @property
    def capacity_mib(self) -> int:
        """All of its memory."""
        return self.gpu.vram_mib if self.gpu else self.worker.node.memory_mib

    def bytes_s(self, constants: Constants) -> float:
        """The bytes that decode reads there in a second."""
        if self.gpu:
            return self.gpu.bandwidth_gb_s * 1e9 * constants.gpu_share
        return self.worker.node.memory_bandwidth_gb_s * 1e9 * constants.cpu_share


def devices(workers: Sequence[Worker]) -> tuple[Device, ...]:
    """The devices of all workers, in the order in which `--rpc` brings them to the engine."""
    found: list[Device] = []
    for worker in workers:
        for index, gpu in enumerate(worker.gpus or (None,)):
            found.append(Device(f"RPC{len(found)}", index, worker, gpu))
    return tuple(found)


def of_settings(rpc: Rpc, nodes: Sequence[Node]) -> tuple[Worker, ...]:
    """The workers of a service, given what each of them has, in order."""
    link = Link.of(rpc.link, rpc.link_gb_s, rpc.latency_us)
    pairs = zip(rpc.workers, nodes, strict=True)
    return tuple(Worker(each.host, f"{each.address}:{rpc.port}", node, link, rpc.memory) for each, node in pairs)


@dataclass(frozen=True, slots=True)
class RemoteLoad:
    """What one token asks of a worker's device, in bytes and weights, and what crosses the link for it.

    + expert_bytes, elements: routed experts that a token reads, all weights that it goes through
    + experts_total_bytes: all routed experts there
    + expert_share: part of the experts that one token reads
    + hidden: elements of a hidden state
    """

    device: Device
    dense_bytes: float
    expert_bytes: float
    experts_total_bytes: float
    elements: float
    attention_layers: int
    recurrent_layers: int
    expert_layers: int
    state_bytes: float
    expert_share: float
    hidden: int

    def __str__(self) -> str:
        link, name = self.device.worker.link, self.device.worker.name
        layers, link_ms = self.attention_layers + self.recurrent_layers, self.link_s(1, SHORT_CONTEXT) * 1e3
        way = f"there and back, by {link.gb_s:g} GB/s and {link.latency_s * 1e6:.0f} us a round trip"
        return f"{self.device.name} ({name}): {layers} layers; a token spends {link_ms:.2f} ms on the way {way}"

    def decode_s(self, constants: Constants) -> float:
        """One token, without the link."""
        read_s = (self.dense_bytes + self.expert_bytes) / self.device.bytes_s(constants)
        expert_s = constants.gpu_layer_s if self.device.gpu else constants.cpu_layer_s
        return read_s + self.expert_layers * expert_s + self._overhead_s(constants)

    def chunk_s(self, constants: Constants, tokens: int) -> float:
        """A chunk of a prompt, without the link."""
        if gpu := self.device.gpu:
            flop_s = gpu.bandwidth_gb_s * 1e9 * constants.gpu_flop_per_byte
            computed_s = constants.prompt_gpu_factor * tokens * 2 * self.elements / flop_s
            return self._overhead_s(constants) + self.dense_bytes / self.device.bytes_s(constants) + computed_s
        node = self.device.worker.node
        touched = 1 - (1 - self.expert_share) ** tokens
        read_s = touched * self.experts_total_bytes / (node.memory_bandwidth_gb_s * 1e9 * constants.prompt_cpu_share)
        computed_s = tokens * 2 * self.elements / (constants.core_flop_s * node.physical_cores)
        return self._overhead_s(constants) + constants.prompt_cpu_factor * (read_s + computed_s)

    def link_s(self, tokens: int, rows: int) -> float:
        """What a chunk of so many tokens, with a context of so many rows, takes to get there and back."""
        mask_bytes = 2 * rows if self.attention_layers else 0
        return self.device.worker.link.s(MESSAGE_BYTES + tokens * (2 * 4 * self.hidden + mask_bytes))

    def prompt_link_s(self, tokens: int, ubatch: int) -> float:
        """The same for a whole prompt, with one checkpoint of the recurrent state, which the main node keeps."""
        chunks = [min(ubatch, tokens - start) for start in range(0, tokens, ubatch)]
        crossing_s = sum(self.link_s(each, min(tokens, n * ubatch + each)) for n, each in enumerate(chunks))
        return crossing_s + self.state_bytes / (self.device.worker.link.gb_s * 1e9)

    def _overhead_s(self, constants: Constants) -> float:
        if self.device.gpu:
            attention_s = self.attention_layers * constants.attention_s
            return attention_s + self.recurrent_layers * constants.recurrent_s
        return (self.attention_layers + self.recurrent_layers) * constants.cpu_only_layer_s
