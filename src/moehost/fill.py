"""Fills GPUs with whole layers of routed experts, each on the card that holds the layer's dense part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from moehost.hardware import Node
from moehost.ledger import CUDA_CONTEXT_MIB, MIB, Memory, compute_bytes, draft_bytes
from moehost.model import Layer, Model
from moehost.speed import GpuLoad, Load, Prompts, Speed, Workload

ROUNDING_MIB = 8  # the ledger rounds each of its entries up


class Overdrawn(Exception):
    """A device that would have to hold more than it can."""

    def __init__(self, device: str, lacking_mib: int) -> None:
        super().__init__(device, lacking_mib)
        self.device, self.lacking_mib = device, lacking_mib


@dataclass(frozen=True, slots=True)
class Filling:
    """The GPU of each layer and, last, of the output layer; and the layers whose experts each GPU holds."""

    layer_gpus: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A way to fill some GPUs: seconds of the request, unevenness, where each one's layers end, and what it holds."""

    answer_s: float
    unevenness: float
    ends: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]

    @property
    def rank(self) -> tuple[float, float]:
        # Sums of the same terms in another order are equal up to here.
        return round(self.answer_s, 11), self.unevenness


def fillings(
    model: Model,
    node: Node,
    memory: Memory,
    ubatch: int,
    speed: Speed,
    workload: Workload,
    threads: int,
    first: int = 0,
) -> list[Filling]:
    """The splits of layers and the experts on GPUs among which is the one that answers the workload first.

    Layers are split into one contiguous range per GPU, as the engines do, and within a range the smallest layers of
    experts come first, then the lower ones. For a given threshold of what goes to a GPU the time of a request is a
    sum over layers, whose least is found exactly; which threshold an engine gets follows from a filling, so there is
    one filling for each. More memory adds possibilities and takes none away, so the best of them never gets slower.

    + threads: threads of prompt processing
    + first: the layers before this one are on other nodes

    Raises Overdrawn when the dense part does not fit.
    """
    largest = max((layer.routed_bytes for layer in model.main_layers), default=0)
    found: dict[Filling, None] = {}
    for threshold in workload.thresholds(ubatch):
        costs = _Costs(model, len(node.gpus), speed, workload, Prompts(ubatch, threshold, threads))
        # Without experts on the CPU nothing is copied, which may be what makes the last layers fit.
        for carried in (0, largest):
            if choice := _best(model, node, memory, ubatch, costs, carried, first):
                found[_filling(choice, model)] = None
    if not found:
        raise _overdrawn(_fixed_bytes(model, memory, ubatch)[first:], _rooms(model, node, memory, ubatch, largest))
    return list(found)


def _filling(choice: _Choice, model: Model) -> Filling:
    gpus: list[int] = []
    for index, end in enumerate(choice.ends):
        gpus += [index] * (end - len(gpus))
    gpus += [gpus[-1]] * (len(model.layers) + 1 - len(gpus))
    return Filling(tuple(gpus), tuple(choice.experts))


class _Costs:
    """What each layer adds to the time of a request, in seconds, by the GPU that has it.

    + dense_s: by GPU, then loaded layer: its dense part; the last layer's with the output
    + saved_s: by GPU, then layer of experts: what its experts take less there than on the CPU
    """

    def __init__(self, model: Model, gpus: int, speed: Speed, workload: Workload, prompts: Prompts) -> None:
        nothing = Load((GpuLoad(),) * gpus, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0, model.expert_count, model.experts_used)

        def on_gpu(gpu: int, load: GpuLoad) -> float:
            loads = tuple(load if index == gpu else GpuLoad() for index in range(gpus))
            return speed.answer_s(replace(nothing, gpus=loads), workload, prompts)

        def on_cpu(layer: Layer) -> float:
            load = replace(
                nothing,
                cpu_expert_bytes=layer.routed_bytes * model.active_share,
                cpu_expert_elements=layer.routed_elements * model.active_share,
                cpu_expert_layers=1,
                cpu_experts_total_bytes=layer.routed_bytes,
            )
            return speed.answer_s(load, workload, prompts)

        output = [0.0] * (len(model.main_layers) - 1) + [model.output_bytes]
        dense = [
            GpuLoad(layer.resident_bytes + more, elements=layer.dense_elements)
            for layer, more in zip(model.main_layers, output, strict=True)
        ]
        self.dense_s = [[on_gpu(gpu, load) for load in dense] for gpu in range(gpus)]
        layers = [model.layers[index] for index in model.expert_layers]
        share = model.active_share
        experts = [GpuLoad(0.0, each.routed_bytes * share, 1, each.routed_elements * share) for each in layers]
        there = [on_cpu(layer) for layer in layers]
        self.saved_s = [
            {
                layer.index: away_s - on_gpu(gpu, load)
                for layer, load, away_s in zip(layers, experts, there, strict=True)
            }
            for gpu in range(gpus)
        ]


def _fixed_bytes(model: Model, memory: Memory, ubatch: int) -> list[float]:
    """What each loaded layer puts on its GPU beside its experts; those of a prediction layer stay with it."""
    fixed = []
    for layer in model.layers if memory.mtp else model.main_layers:
        kv = layer.kv_bytes(memory.rows(layer.window, ubatch), memory.type_k, memory.type_v)
        experts = layer.routed_bytes if layer.is_mtp else 0
        fixed.append(layer.resident_bytes + experts + kv + layer.state_bytes * memory.parallel)
    fixed[-1] += sum(part.size_bytes for part in model.parts if part.role == "output")
    if model.is_tied:
        fixed[-1] += model.output_bytes
    fixed[-1] += sum(draft_bytes(model, memory, ubatch))
    return fixed


def _rooms(model: Model, node: Node, memory: Memory, ubatch: int, carried: int) -> list[float]:
    compute = compute_bytes(model, memory, ubatch, carried)
    return [
        (gpu.vram_mib - CUDA_CONTEXT_MIB - memory.margin_mib(index) - ROUNDING_MIB) * MIB - compute
        for index, gpu in enumerate(node.gpus)
    ]


def _best(
    model: Model, node: Node, memory: Memory, ubatch: int, costs: _Costs, carried: int, first: int
) -> _Choice | None:
    """The cheapest filling with room for a copy of `carried` bytes of experts; for 0 all experts are resident."""
    fixed = _fixed_bytes(model, memory, ubatch)
    sums = list(accumulate(fixed, initial=0.0))
    # Layers of a prediction come last, and cost the request nothing.
    idle = [0.0] * (len(fixed) - len(model.main_layers))
    dense = [list(accumulate([*of_gpu, *idle], initial=0.0)) for of_gpu in costs.dense_s]
    rooms = _rooms(model, node, memory, ubatch, carried)
    count, last = len(fixed), len(node.gpus) - 1
    order = sorted(model.expert_layers, key=lambda index: (model.layers[index].routed_bytes, index))

    def segment(gpu: int, start: int, end: int) -> _Choice | None:
        """One GPU with the layers of a range, filled up."""
        if start == end:
            return _Choice(0.0, 0.0, (end,), ((),))
        need = sums[end] - sums[start]
        room = rooms[gpu] - need
        if room < 0:
            return None
        taken = []
        answer_s = dense[gpu][end] - dense[gpu][start]
        for index in order:
            if start <= index < end and (not carried or costs.saved_s[gpu][index] > 0):
                if model.layers[index].routed_bytes > room:
                    if not carried:
                        return None
                    break
                room -= model.layers[index].routed_bytes
                answer_s -= costs.saved_s[gpu][index]
                taken.append(index)
        return _Choice(answer_s, (need / rooms[gpu]) ** 2, (end,), (tuple(sorted(taken)),))

    @cache
    def best(gpu: int, start: int) -> _Choice | None:
        """The best way to give the layers from `start` on to this GPU and the following ones."""
        found: _Choice | None = None
        for end in [count] if gpu == last else range(start, count + 1):
            here = segment(gpu, start, end)
            if here is None:
                break  # more layers do not fit either
            rest = _Choice(0.0, 0.0, (), ()) if gpu == last else best(gpu + 1, end)
            if rest is None:
                continue
            choice = _Choice(
                here.answer_s + rest.answer_s,
                here.unevenness + rest.unevenness,
                here.ends + rest.ends,
                here.experts + rest.experts,
            )
            if found is None or choice.rank < found.rank:
                found = choice
        return found

    return best(0, first)


def _overdrawn(needs: list[float], rooms: list[float]) -> Overdrawn:
    """What the last GPU lacks for the dense part when those before it are full."""
    gpu = 0
    for need in needs:
        while gpu < len(rooms) - 1 and rooms[gpu] < need:
            gpu += 1
        rooms[gpu] -= need
    return Overdrawn(f"CUDA{gpu}", -int(rooms[gpu] // MIB))
