"""Fills GPUs with whole layers of routed experts, each on the card that holds the layer's dense part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from moehost.hardware import Node
from moehost.ledger import CUDA_CONTEXT_MIB, MIB, Memory, compute_bytes, draft_bytes
from moehost.model import Model
from moehost.speed import Speed

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
    experts: dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A way to fill some GPUs: seconds a token saves, unevenness, where each one's layers end, and what it holds."""

    saved_s: float
    unevenness: float
    ends: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]

    @property
    def rank(self) -> tuple[float, float]:
        return round(self.saved_s, 9), -self.unevenness


def fill(model: Model, node: Node, memory: Memory, ubatch: int, speed: Speed) -> Filling:
    """The split of layers and the experts on GPUs with which a token takes the least time.

    Layers are split into one contiguous range per GPU, as the engines do, and within a range the smallest layers of
    experts come first, then the lower ones. Raises Overdrawn when the dense part does not fit.
    """
    largest = max((layer.routed_bytes for layer in model.main_layers), default=0)
    # Without experts on the CPU nothing is copied, which may be what makes the last layers fit.
    whole = _best(model, node, memory, ubatch, speed, 0)
    if whole is not None and sum(map(len, whole.experts)) < len(model.expert_layers):
        whole = None
    partial = _best(model, node, memory, ubatch, speed, largest)
    choices = [choice for choice in (whole, partial) if choice is not None]
    if not choices:
        raise _overdrawn(model, memory, ubatch, _rooms(model, node, memory, ubatch, largest))
    best = max(choices, key=lambda choice: choice.rank)
    gpus: list[int] = []
    for index, end in enumerate(best.ends):
        gpus += [index] * (end - len(gpus))
    gpus += [gpus[-1]] * (len(model.layers) + 1 - len(gpus))
    return Filling(tuple(gpus), {index: layers for index, layers in enumerate(best.experts) if layers})


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


def _best(model: Model, node: Node, memory: Memory, ubatch: int, speed: Speed, carried: int) -> _Choice | None:
    fixed = _fixed_bytes(model, memory, ubatch)
    sums = list(accumulate(fixed, initial=0.0))
    rooms = _rooms(model, node, memory, ubatch, carried)
    count, last = len(fixed), len(node.gpus) - 1
    order = sorted(model.expert_layers, key=lambda index: (model.layers[index].routed_bytes, index))
    active = {index: model.layers[index].routed_bytes * model.active_share for index in order}
    savings = [{index: speed.saving_s(gpu, active[index]) for index in order} for gpu in range(last + 1)]

    def segment(gpu: int, start: int, end: int) -> _Choice | None:
        """One GPU with the layers of a range, filled up."""
        if start == end:
            return _Choice(0.0, 0.0, (end,), ((),))
        need = sums[end] - sums[start]
        room = rooms[gpu] - need
        if room < 0:
            return None
        taken = []
        saved = -speed.gpu_read_s(gpu, need)
        for index in order:
            if start <= index < end and savings[gpu][index] > 0:
                if model.layers[index].routed_bytes > room:
                    break
                room -= model.layers[index].routed_bytes
                saved += savings[gpu][index]
                taken.append(index)
        return _Choice(saved, (need / rooms[gpu]) ** 2, (end,), (tuple(sorted(taken)),))

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
                here.saved_s + rest.saved_s,
                here.unevenness + rest.unevenness,
                here.ends + rest.ends,
                here.experts + rest.experts,
            )
            if found is None or choice.rank > found.rank:
                found = choice
        return found

    return best(0, 0)


def _overdrawn(model: Model, memory: Memory, ubatch: int, rooms: list[float]) -> Overdrawn:
    """What the last GPU lacks for the dense part when those before it are full."""
    gpu = 0
    for need in _fixed_bytes(model, memory, ubatch):
        while gpu < len(rooms) - 1 and rooms[gpu] < need:
            gpu += 1
        rooms[gpu] -= need
    return Overdrawn(f"CUDA{gpu}", -int(rooms[gpu] // MIB))
