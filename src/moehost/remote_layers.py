"""Which whole layers go to workers, and how the engines are told: each device is filled before the next one gets any.

With cards on this node the first layers go away, and the output stays on the last card; without cards the last ones
go, and a rule keeps the output here: a row of the vocabulary is a hundred times a hidden state. Either way a token
crosses to each device once and comes back once. Experts alone would cross twice for each of their layers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from moehost import ledger, split
from moehost.engine import Offload
from moehost.fill import ROUNDING_MIB, Filling, Overdrawn
from moehost.ledger import MIB, Memory
from moehost.model import Model
from moehost.rules import experts_rule
from moehost.worker import Device

# llama.cpp counts the output among the layers that `-ngl` sends away; ik_llama.cpp does not.
OUTPUT_STAYS = "^(output|token_embd)=CPU"


def filled(model: Model, memory: Memory, ubatch: int, remotes: Sequence[Device], layers: range) -> dict[int, str]:
    """The device of each of these layers; raises Overdrawn where they do not all fit."""
    rooms: list[float] = []
    for device in remotes:
        kept = ledger.remote_context_mib(device) + ledger.remote_margin_mib(device) + ROUNDING_MIB
        compute = ledger.compute_bytes(model, memory, ubatch, 0, bool(device.gpu))
        rooms.append((device.capacity_mib - kept) * MIB - compute)
    found: dict[int, str] = {}
    at = 0
    for index in layers:
        layer = model.layers[index]
        weights = layer.resident_bytes + layer.routed_bytes + layer.state_bytes * memory.parallel
        need = weights + layer.kv_bytes(memory.rows(layer.window, ubatch), memory.type_k, memory.type_v)
        while at < len(remotes) - 1 and rooms[at] < need:
            at += 1
        if rooms[at] < need:
            raise Overdrawn(remotes[at].name, int((need - rooms[at]) // MIB) + 1)
        rooms[at] -= need
        found[index] = remotes[at].name
    return found


def counts(model: Model, fits_away: Callable[[int], bool], fits: Callable[[int], bool]) -> list[int]:
    """How many layers may go away: the fewest with which the rest fits here, the most, and one between them."""
    numbers = range(1, len(model.main_layers) + 1)
    # More layers away leave more room here, and take more there.
    most = bisect_left(numbers, True, key=lambda count: not fits_away(count))
    if not most:
        return [1]
    least = min(bisect_left(numbers[:most], True, key=fits) + 1, most)
    return sorted({least, (least + most) // 2, most})


def layer_devices(model: Model, away: Mapping[int, str], filling: Filling | None) -> tuple[str, ...]:
    """The device of each layer and of the output layer; without cards (`filling` is None) the rest is on the CPU."""
    if filling:
        gpus = [f"CUDA{gpu}" for gpu in filling.layer_gpus]
        return tuple(away.get(index, gpu) for index, gpu in enumerate(gpus))
    return (*(away.get(index, "CPU") for index in range(len(model.layers))), "CPU")


def told(
    offload: Offload, model: Model, memory: Memory, remotes: Sequence[Device], devices: Sequence[str], gpus: int
) -> Offload:
    """The offload of layers on `devices`, as the engine of this dialect is told of it; experts in RAM come later."""
    used = [device for device in remotes if device.name in devices]
    cards = [f"CUDA{gpu}" for gpu in range(gpus)]
    order = [*(device.name for device in used), *cards]
    start = 0 if gpus else next(index for index, name in enumerate(devices) if name != "CPU")
    counts_output = bool(gpus) or memory.dialect == "llama.cpp"
    # Layers of a prediction, and the output that a rule keeps here, are counted with the device before them.
    of_layers: list[int] = []
    for name in devices[start : len(devices) if counts_output else -1]:
        of_layers.append(order.index(name) if name in order else of_layers[-1])
    return replace(
        offload,
        workers=tuple(dict.fromkeys(device.worker.endpoint for device in remotes)),
        devices=(*(device.flag(memory.dialect) for device in used), *cards),
        gpu_layers=(99 if len(model.layers) < 99 else 999) if gpus else len(of_layers),
        split_mode="layer" if len(order) > 1 else None,
        tensor_split=_shares(model, memory, offload.ubatch, of_layers, start, len(order)),
        tensor_overrides=() if gpus or memory.dialect == "ik" else (OUTPUT_STAYS,),
    )


def _shares(
    model: Model, memory: Memory, ubatch: int, of_layers: Sequence[int], start: int, count: int
) -> tuple[float, ...]:
    if count < 2:
        return ()
    if memory.dialect == "llama.cpp":
        return split.shares_by_count(of_layers, count)
    sizes, compute = split.layer_sizes(model, memory, ubatch)
    return split.shares_by_bytes(sizes[start : start + len(of_layers)], compute, of_layers, count)


def experts_here(model: Model, devices: Sequence[str], filling: Filling) -> tuple[str, ...]:
    """The rule for the experts that stay in RAM: those of this node's layers that no card holds."""
    resident = {index for layers in filling.experts for index in layers}
    there = [i for i in model.expert_layers if devices[i].startswith("CUDA") and i not in resident]
    return (experts_rule(there, "CPU"),) if there else ()
