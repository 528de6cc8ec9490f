"""Reads what ik_llama.cpp's ``--dry-run`` says of its buffers, and compares it with the ledger of a plan.

Standard library only and without other moehost modules at run time, because `moehost.rehearse` takes it to a node.
Line formats are those of ik_llama.cpp 8337e4cd; each pattern names the place in its source that prints it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moehost.ledger import Row

MIB = 1 << 20

# Of the larger of both sizes. Weights, KV cache and state follow from the file; the compute buffer is a model.
TOLERANCE = {"weights": 0.005, "KV cache": 0.005, "state": 0.005, "cache": 0.005, "compute": 0.03}
ROUNDING_MIB = 2.0  # the ledger rounds each part of a row up to whole MiB, and adds two of them at most

# `name` is a buffer's name: CPU, CUDA0, CUDA_Host. The first word is the C++ function, which moves between versions.
_BUFFER = re.compile(
    # src/llama.cpp:4832 weights, :1614 KV cache with recurrent state, :8659 compute buffer
    r"\w+: +(?P<name>\S+) (?P<kind>|KV |compute )buffer size = +(?P<mib>[0-9.]+) MiB"
)
_KV_SELF = re.compile(r"\w+: KV self size +?= +(?P<mib>[0-9.]+) MiB")  # src/llama.cpp:8538-8551, all devices together
_DEVICE = re.compile(r"(?P<name>\S+): using device \S+ - (?P<mib>[0-9]+) MiB free")  # src/llama.cpp:7841
_LAYERS = re.compile(r"\w+: n_layer += (?P<count>[0-9]+)")  # src/llama.cpp:2674
_OFFLOADED = re.compile(r"\w+: offloaded (?P<count>[0-9]+)/[0-9]+ layers to GPU")  # src/llama.cpp:4827
_PARAMETERS = re.compile(r"\w+: model params += (?P<value>[0-9.]+) (?P<unit>[TBMK])")  # src/llama.cpp:2715-2721
_SIZE = re.compile(r"\w+: model size += (?P<value>[0-9.]+) (?P<unit>[MG]iB)")  # src/llama.cpp:2724-2726
_SIMD = re.compile(r"=+ HAVE_FANCY_SIMD is (?P<answer>defined|NOT defined)")  # src/llama.cpp:4273-4275
_UNITS = {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3, "MiB": 1.0, "GiB": 1024.0}

# ggml/src/ggml-cuda.cu:739
_NO_VRAM = re.compile(
    r"\w+: allocating (?P<mib>[0-9.]+) MiB on device (?P<gpu>[0-9]+): cudaMalloc failed: (?P<why>.+)"
)
_NO_RAM = re.compile(r"\w+: failed to allocate buffer of size (?P<bytes>[0-9]+)")  # ggml/src/ggml-backend.cpp:709
_NO_MODEL = re.compile(r"\w+: error loading model: (?P<why>.+)")  # src/llama.cpp:5045
_NO_ARGUMENT = re.compile(r"error: (?P<why>(?:unknown argument|invalid parameter).*)")  # common/common.cpp:733-736


@dataclass(frozen=True)
class Buffers:
    """What the engine has said of itself; what a log does not say is missing, or None.

    + weights_mib, kv_mib, compute_mib: buffers by device, "CPU" for all of the host's; `kv_mib` holds the KV cache
      and the recurrent state, which share their buffers
    + kv_self_mib: the KV cache alone, all devices together
    + gpu_free_mib: what each GPU had free before anything was loaded, the CUDA context deducted
    + layers: repeating layers, with those of multi-token prediction; offloaded_layers: with the output layer, too
    + parameters: a count, of three decimals as printed; model_mib: its tensors
    + has_fancy_simd: whether the CPU kernels for AVX512 are built in
    """

    weights_mib: Mapping[str, float]
    kv_mib: Mapping[str, float]
    compute_mib: Mapping[str, float]
    gpu_free_mib: Mapping[str, int]
    kv_self_mib: float | None = None
    layers: int | None = None
    offloaded_layers: int | None = None
    parameters: float | None = None
    model_mib: float | None = None
    has_fancy_simd: bool | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the engine came as far as its compute buffer, the last one it makes."""
        return bool(self.weights_mib and self.compute_mib)

    @property
    def state_mib(self) -> float | None:
        """The recurrent state of all devices: what the cache's buffers hold beside the KV cache itself."""
        if not self.kv_mib or self.kv_self_mib is None:
            return None
        return round(sum(self.kv_mib.values()) - self.kv_self_mib, 2)


def parse(log: str) -> Buffers:
    """Reads the log of a start, standard output and error in one.

    Buffers that are printed twice for a device add up: the shards of a mapped file, or the second context that
    multi-token prediction makes. Pinned host memory ("CUDA_Host") counts for the CPU.
    """
    buffers: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in ("", "KV ", "compute ")}
    kv_self: float | None = None
    for line in log.splitlines():
        if buffer := _BUFFER.fullmatch(line.rstrip()):
            device = "CPU" if buffer["name"].endswith("_Host") else buffer["name"]
            buffers[buffer["kind"]][device] += float(buffer["mib"])
        elif size := _KV_SELF.match(line):
            kv_self = (kv_self or 0.0) + float(size["mib"])
    layers, offloaded, parameters, model, simd = (
        next(filter(None, map(pattern.match, log.splitlines())), None)
        for pattern in (_LAYERS, _OFFLOADED, _PARAMETERS, _SIZE, _SIMD)
    )
    devices = filter(None, map(_DEVICE.match, log.splitlines()))
    return Buffers(
        weights_mib=dict(buffers[""]),
        kv_mib=dict(buffers["KV "]),
        compute_mib=dict(buffers["compute "]),
        gpu_free_mib={found["name"]: int(found["mib"]) for found in devices if found["name"] != "CPU"},
        kv_self_mib=kv_self,
        layers=int(layers["count"]) if layers else None,
        offloaded_layers=int(offloaded["count"]) if offloaded else None,
        parameters=float(parameters["value"]) * _UNITS[parameters["unit"]] if parameters else None,
        model_mib=float(model["value"]) * _UNITS[model["unit"]] if model else None,
        has_fancy_simd=simd["answer"] == "defined" if simd else None,
    )


def refusal(log: str) -> str | None:
    """Why the engine gave up, in one line with the way to mend it; None if the log does not say."""
    for line in log.splitlines():
        if found := _NO_VRAM.match(line):
            return (
                f"CUDA{found['gpu']} has no {float(found['mib']):.0f} MiB left ({found['why'].strip()}); "
                "end what else uses the card, or plan with a larger margin"
            )
        if found := _NO_RAM.match(line):
            return (
                f"the kernel grants no {int(found['bytes']) // MIB} MiB at once, which is more than this machine "
                "has; to check the plan all the same, set vm.overcommit_memory=1 for the time of the check"
            )
        if found := _NO_MODEL.match(line) or _NO_ARGUMENT.match(line):
            return f"the engine refuses the plan: {found['why'].strip()}"
    return None


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the comparison; `engine_mib` is None where the log does not say.

    + device: a row's device, or "all" for what the log only gives in sum
    + what: weights, cache (KV cache and state in one), compute; KV cache and state for "all"
    """

    device: str
    what: str
    ledger_mib: float
    engine_mib: float | None

    @property
    def excess_mib(self) -> float:
        """What the engine takes beyond the ledger, below 0 where it takes less; 0 where it does not say."""
        return 0.0 if self.engine_mib is None else self.engine_mib - self.ledger_mib

    @property
    def per_cent(self) -> float | None:
        """The ledger's error, of the engine's size; None where there is none to divide by."""
        return 100 * (self.ledger_mib - self.engine_mib) / self.engine_mib if self.engine_mib else None

    @property
    def is_within(self) -> bool:
        """Whether both agree, as far as `TOLERANCE` and the ledger's rounding allow."""
        if self.engine_mib is None:
            return False
        tolerance_mib = TOLERANCE[self.what] * max(self.engine_mib, self.ledger_mib)
        return abs(self.excess_mib) <= max(tolerance_mib, ROUNDING_MIB)


def compare(rows: Sequence[Row], buffers: Buffers) -> list[Difference]:
    """Sets the ledger's rows (`placement.Placement.rows`) beside the engine's buffers.

    Device by device, then KV cache and state of all devices; what neither side has is left out. A device of the
    engine's that no row knows appears with a ledger of 0. The CUDA context, the margin and the server's own caches
    have no buffer and are not compared.
    """
    found = [difference for row in rows for difference in _of_row(row, buffers)]
    known = {row.device for row in rows}
    for what, sizes in (
        ("weights", buffers.weights_mib),
        ("cache", buffers.kv_mib),
        ("compute", buffers.compute_mib),
    ):
        found += [Difference(device, what, 0, mib) for device, mib in sizes.items() if device not in known]
    found.append(Difference("all", "KV cache", sum(row.kv_mib for row in rows), buffers.kv_self_mib))
    found.append(Difference("all", "state", sum(row.state_mib for row in rows), buffers.state_mib))
    return [difference for difference in found if difference.ledger_mib or difference.engine_mib]


def _of_row(row: Row, buffers: Buffers) -> list[Difference]:
    """A buffer that is not printed has no size, if the engine came to the end; else it is not known."""
    absent = 0.0 if buffers.is_complete else None
    return [
        Difference(row.device, what, ledger_mib, sizes.get(row.device, absent))
        for what, ledger_mib, sizes in (
            ("weights", row.dense_mib + row.experts_mib, buffers.weights_mib),
            ("cache", row.kv_mib + row.state_mib, buffers.kv_mib),
            ("compute", row.compute_mib, buffers.compute_mib),
        )
    ]


def free_mib(rows: Sequence[Row], buffers: Buffers) -> dict[str, int]:
    """What each row leaves free, beside its margin, with the engine's sizes in place of its own; below 0 lacks."""
    return {row.device: row.free_mib - _excess_mib(row, buffers) for row in rows}


def corrected_margins(rows: Sequence[Row], buffers: Buffers) -> tuple[int, ...]:
    """The `margins_mib` of a request that plans the same again with the engine's sizes in mind, one for each GPU.

    A margin grows by what the engine takes beyond the ledger, and shrinks by what it takes less, to 0 at least: so
    the card keeps the same room as was asked for. Without a GPU there is none, and nothing to plan again.
    """
    return tuple(max(row.margin_mib + _excess_mib(row, buffers), 0) for row in rows if row.device != "CPU")


def _excess_mib(row: Row, buffers: Buffers) -> int:
    # Rounding apart, so that a ledger that agrees corrects nothing.
    parts = (difference.excess_mib for difference in _of_row(row, buffers))
    return math.ceil(sum(part for part in parts if abs(part) > ROUNDING_MIB))
