"""Which layers a `--tensor-split` gives to which GPU, as each engine reads it, and the split for given ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from moehost.ledger import Memory
from moehost.model import Model


def layer_sizes(model: Model, memory: Memory, ubatch: int) -> tuple[list[float], float]:
    """What ik_llama.cpp weighs to split layers, in bytes: each layer and the output layer, and the compute buffer.

    All experts count, whatever the rules say of them (get_layer_sizes in src/llama.cpp at 8337e4cd).
    """
    compute = max(
        4.0 * ubatch * (layer.ffn_branches * (2 * layer.ffn_width + model.hidden) + 2 * model.hidden)
        for layer in model.main_layers
    )
    sizes = []
    for layer in model.layers:
        weights = layer.resident_bytes + layer.routed_bytes if memory.mtp or not layer.is_mtp else 0
        kv = layer.kv_bytes(memory.rows(layer.window, ubatch), memory.type_k, memory.type_v)
        sizes.append(weights + kv + layer.state_bytes * memory.parallel)
    sizes.append(model.output_bytes + max(4.0 * model.vocabulary * ubatch - compute, 0.0))
    return sizes, compute


def split_by_bytes(sizes: Sequence[float], compute: float, shares: Sequence[float]) -> list[int]:
    """The device of each layer and of the output layer in ik_llama.cpp, which fills devices in order.

    A device takes layers while they fit its share of all bytes, and one more if that comes closer to it.
    """
    total = compute * len(shares) + sum(sizes)
    devices = [len(shares) - 1] * len(sizes)
    at, loaded = 0, 0.0
    for device, cumulated in enumerate(accumulate(shares)):
        loaded += compute
        room = total * cumulated / sum(shares)
        while at < len(sizes) and loaded + sizes[at] <= room:
            devices[at] = device
            loaded += sizes[at]
            at += 1
        if at < len(sizes) and loaded + sizes[at] - room < room - loaded:
            devices[at] = device
            loaded += sizes[at]
            at += 1
    return devices


def split_by_count(layers: int, shares: Sequence[float]) -> list[int]:
    """The device of each layer and of the output layer in llama.cpp, which counts them and ignores their sizes."""
    bounds = [cumulated / sum(shares) for cumulated in accumulate(shares)]
    return [
        next((device for device, bound in enumerate(bounds) if bound > index / (layers + 1)), len(shares) - 1)
        for index in range(layers + 1)
    ]


def shares_by_bytes(sizes: Sequence[float], compute: float, devices: Sequence[int], count: int) -> tuple[float, ...]:
    """A short `--tensor-split` by which ik_llama.cpp puts layers and output layer on these of `count` devices.

    `devices` never descends. A bound at the exact bytes of a device's layers lies in the middle of all that give the
    wanted split; a fifth of the smallest layer to either side is still far from the next layer.
    """
    exact = [compute] * count
    for device, size in zip(devices, sizes, strict=True):
        exact[device] += size
    return _shortest(list(accumulate(exact)), min(size for size in sizes if size > 0) / 5)


def shares_by_count(devices: Sequence[int], count: int) -> tuple[float, ...]:
    """The same for llama.cpp: bounds lie half a layer before the first one that must not be included."""
    bounds = [max(sum(device <= last for device in devices) - 0.5, 0.0) for last in range(count)]
    return _shortest([*bounds[:-1], float(len(devices))], 0.2)


def _shortest(bounds: Sequence[float], tolerance: float) -> tuple[float, ...]:
    """The smallest whole shares whose cumulated bounds, scaled to the last one, stay within the tolerance."""
    for total in range(1, 10_000):
        rounded = [round(total * bound / bounds[-1]) for bound in bounds]
        if all(abs(r / total * bounds[-1] - b) <= tolerance for r, b in zip(rounded, bounds, strict=True)):
            break
    return tuple(float(upper - lower) for lower, upper in zip([0, *rounded], rounded, strict=False))
