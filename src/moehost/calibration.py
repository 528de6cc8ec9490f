"""Replaces the published constants of the speed model by measurements of a node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any

from moehost.engine import Dialect
from moehost.hardware import Node
from moehost.model import Model
from moehost.speed import DEFAULT_OFFLOAD_BATCH, PUBLISHED, Constants, Load, Prompts, Speed, threshold_tokens
from moehost.split import split_by_count


class CalibrationError(ValueError):
    """Measurements that determine nothing, or a file that holds none; one line that says what is missing."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of a node: a load, its decode rate, and pairs of prompt length and seconds."""

    load: Load
    decode_tok_s: float
    prompts: Prompts
    prompt_s: tuple[tuple[int, float], ...] = ()


def read_points(data: Any, model: Model, node: Node, dialect: Dialect) -> list[Point]:
    """Measured points of a model on a node, from JSON.

    A list of objects: `experts` as a plan names them, `ubatch` and `decode_tok_s`, and where prompts were measured
    `prompt_tok_s` by length. `threads_batch` and `offload_batch` are the cores and the engine's default if not given.
    Raises CalibrationError with the point's number for what is missing or wrong.
    """
    if not isinstance(data, list):
        raise CalibrationError("the file is no list of points; see `moehost calibrate --help` for an example")
    return [_read_point(f"point {index}", entry, model, node, dialect) for index, entry in enumerate(data)]


def _read_point(name: str, entry: Any, model: Model, node: Node, dialect: Dialect) -> Point:
    try:
        experts = {int(layer): str(device) for device, layers in entry["experts"].items() for layer in layers}
        ubatch, decode_tok_s = int(entry["ubatch"]), float(entry["decode_tok_s"])
        threads = int(entry.get("threads_batch", node.physical_cores))
        batch = int(entry.get("offload_batch", DEFAULT_OFFLOAD_BATCH))
        rates = [(int(tokens), float(rate)) for tokens, rate in entry.get("prompt_tok_s", {}).items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CalibrationError(
            f"{name}: cannot be read ({error!r}); give experts, ubatch and decode_tok_s"
        ) from error
    places = {"CPU", *(f"CUDA{index}" for index in range(len(node.gpus)))}
    if set(experts) != set(model.expert_layers) or not places.issuperset(experts.values()):
        raise CalibrationError(f"{name}: experts must name each expert layer of the model once, on {sorted(places)}")
    if not all(0 < value < math.inf for value in (ubatch, decode_tok_s, threads, batch, *chain(*rates))):
        raise CalibrationError(f"{name}: has a value that is not above 0; measure it again")
    gpus = len(node.gpus)
    # Among equal cards it does not matter where a layer's dense part is; even shares are near enough.
    devices = [f"CUDA{gpu}" for gpu in split_by_count(len(model.layers), [1.0] * gpus)] if gpus else []
    load = Load.of(model, gpus, devices or ["CPU"] * (len(model.layers) + 1), experts)
    prompts = Prompts(ubatch, threshold_tokens(model, dialect, batch), threads)
    return Point(load, decode_tok_s, prompts, tuple((tokens, tokens / rate) for tokens, rate in rates))


def calibrate(node: Node, points: Sequence[Point], start: Constants = PUBLISHED) -> Constants:
    """Constants refitted to measurements of this node.

    Decode: least squares of the CPU's bandwidth and the overhead of layers over all points; where all points have the
    same experts on the CPU only the overhead is fitted. Prompts: one factor each for chunks below and above the
    threshold. Raises CalibrationError for fewer than two points, and for points that contradict the model.
    """
    if len(points) < 2:
        raise CalibrationError(f"{len(points)} measured point(s): give two or more, with different layers on the GPU")
    speed = Speed(node, start)
    overheads, reads, rests = [], [], []
    for point in points:
        load = point.load
        overheads.append(speed.overhead_s(load))
        reads.append(speed.read_s(load))
        rests.append(1 / point.decode_tok_s - (speed.decode_s(load) - overheads[-1] - reads[-1]))
    read_factor, overhead_factor = _two_factors(reads, overheads, rests)
    if read_factor <= 0 or overhead_factor < 0:
        raise CalibrationError(
            "the points contradict each other: a layer on the GPU did not save time; measure again"
        )
    fitted = replace(
        start,
        cpu_share=start.cpu_share / read_factor,
        attention_s=start.attention_s * overhead_factor,
        recurrent_s=start.recurrent_s * overhead_factor,
        cpu_only_layer_s=start.cpu_only_layer_s * overhead_factor,
        saving_low=0.9,
        saving_high=1.1,
        source=f"{len(points)} measured points of this node",
    )
    fitted = _with_prompt_factors(node, points, fitted)
    after = Speed(node, fitted)
    errors = [after.decode_s(point.load) * point.decode_tok_s - 1 for point in points]
    return replace(fitted, spread=max(0.02, 2 * math.sqrt(sum(error**2 for error in errors) / len(errors))))


def _two_factors(first: Sequence[float], second: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least squares of ``values = x * first + y * second``; x stays 1 where the points do not tell them apart."""
    aa, bb = sum(a * a for a in first), sum(b * b for b in second)
    ab = sum(a * b for a, b in zip(first, second, strict=True))
    av = sum(a * v for a, v in zip(first, values, strict=True))
    bv = sum(b * v for b, v in zip(second, values, strict=True))
    determinant = aa * bb - ab * ab
    if determinant <= 1e-6 * aa * bb:
        return 1.0, (bv - ab) / bb
    return (av * bb - bv * ab) / determinant, (bv * aa - av * ab) / determinant


def _with_prompt_factors(node: Node, points: Sequence[Point], constants: Constants) -> Constants:
    """Fits the factor of chunks below the threshold from prompts that have only such, then that of the others."""
    for name, is_above in (("prompt_cpu_factor", False), ("prompt_gpu_factor", True)):
        speed = Speed(node, constants)
        ratios = [
            seconds / speed.prompt_s(point.load, tokens, point.prompts)
            for point in points
            for tokens, seconds in point.prompt_s
            if (min(tokens, point.prompts.ubatch) >= point.prompts.threshold) is is_above
        ]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            constants = replace(constants, **{name: getattr(constants, name) * mean})
    return constants


def to_json(constants: Constants) -> dict[str, Any]:
    """Constants in plain JSON types, for `from_json`."""
    return asdict(constants)


def from_json(data: Any) -> Constants:
    """The inverse of `to_json`; raises CalibrationError where a constant is missing or no number."""
    try:
        numbers = {field.name: float(data[field.name]) for field in fields(Constants) if field.name != "source"}
        return Constants(**numbers, source=str(data["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"constants: cannot be read ({error}); calibrate again") from error
