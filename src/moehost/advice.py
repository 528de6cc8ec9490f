"""What an owner should know about a placement: doubts, idle memory, and settings that are known to hurt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moehost import memory_policy
from moehost.engine import Offload
from moehost.hardware import Node
from moehost.ledger import MIB, Assignment, Row
from moehost.model import Model
from moehost.request import Request
from moehost.rules import Rule
from moehost.worker import Device

# A start is worth a word from here.
LONG_LOAD_MINUTES = 5


def advice(
    model: Model,
    node: Node,
    request: Request,
    offload: Offload,
    layer_devices: Sequence[str],
    assignment: Assignment,
    rows: Sequence[Row],
) -> Iterator[str]:
    """Warnings, a line each, that begin with what they are about."""
    yield from node.warnings
    yield from model.warnings
    chosen = memory_policy.pages(request.huge_pages, request.dialect)
    yield from memory_policy.warnings(request.numa, node.cpu.numa_nodes, chosen, len(node.gpus))
    slot_context = offload.context // offload.parallel
    if model.context_length and slot_context > model.context_length:
        yield f"context: {slot_context} tokens a slot are more than the {model.context_length} of the training"
    for key, threads in (("threads", offload.threads), ("threads_batch", offload.threads_batch)):
        if threads > node.physical_cores:
            yield f"{key}: {threads} on {node.physical_cores} cores; more threads than cores can halve the speed"
    if any(gpu.pcie_gb_s > node.gpus[0].pcie_gb_s for gpu in node.gpus):
        yield "CUDA0: carries the experts of long prompts, but another card has the faster link; make that one CUDA0"
    away = [i for i, device in assignment.experts.items() if device not in ("CPU", layer_devices[i])]
    if away:
        yield f"{_layers(away)}: experts on another GPU than the rest of the layer; every token crosses over"
    if assignment.torn:
        yield f"{_layers(assignment.torn)}: experts on several devices; keep gate, up and down of a layer together"
    if idle := sorted({i for layers in request.gpu_experts for i in layers} - set(assignment.experts)):
        yield f"{_layers(idle)}: no experts that are loaded, so the rule does nothing"
    for rule in map(Rule.parse, offload.tensor_overrides):
        if not any(rule.pattern.search(name) for name in assignment.tensors):
            yield f"rule {rule}: matches no tensor that is loaded"
    if request.placement not in ("auto", "rpc") and "CPU" in assignment.experts.values():
        smallest = min(model.layers[i].routed_bytes for i in model.expert_layers) // MIB
        for row in rows[:-1]:
            if row.free_mib > smallest:
                yield f"{row.device}: {row.free_mib} MiB stay idle; placement auto fills them with experts"


def of_workers(remotes: Sequence[Device], rows: Sequence[Row]) -> Iterator[str]:
    """Warnings about what is on other nodes."""
    for worker in dict.fromkeys(remote.worker for remote in remotes):
        names = {remote.name for remote in remotes if remote.worker == worker}
        weights_mib = sum(row.dense_mib + row.experts_mib for row in rows if row.device in names)
        minutes = weights_mib * MIB / (worker.link.gb_s * 1e9) / 60
        if not weights_mib:
            yield f"{worker.name}: gets no layer, what comes before it is enough; leave it out"
        elif minutes >= LONG_LOAD_MINUTES:
            yield (
                f"{worker.name}: each start sends {weights_mib / 1024:.0f} GiB over the link, {minutes:.0f} min at "
                f"{worker.link.gb_s:g} GB/s; see start_timeout_s and rpc.cache"
            )


def _layers(indices: Iterable[int]) -> str:
    return f"layer {', '.join(map(str, indices))}"
