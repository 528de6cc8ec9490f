"""What a service may want of a placement, and which wishes make no sense for a model and a machine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from moehost.engine import Dialect
from moehost.hardware import Node
from moehost.ledger import MARGIN_MIB
from moehost.memory_policy import NumaWish, PagesWish
from moehost.model import KV_BYTES, Model
from moehost.rules import Rule
from moehost.worker import Worker

UBATCHES = (512, 1024, 2048, 4096, 8192)
BATCH = 2048  # the engines' default; a larger ubatch needs a batch of its size


class PlacementError(ValueError):
    """A request that makes no sense for this model or machine; one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a service wants; None leaves a choice to the planner, or to the preset.

    + context: tokens of all slots together; None for what the model was trained on
    + gpu_experts: for `tensor-split`, the layers whose experts each GPU takes
    + rules, cpu_moe: for `manual`, `REGEX=DEVICE` in order, and whether all other experts stay on the CPU
    + prompt_tokens, answer_tokens: the typical request, whose time `auto` minimises
    + numa, huge_pages: see `memory_policy`
    + workers: for `rpc`, the nodes that may hold layers
    """

    placement: Literal["auto", "cpu-moe", "tensor-split", "manual", "rpc"] = "auto"
    context: int | None = None
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    parallel: int = 1
    batch: int | None = None
    ubatch: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    gpu_experts: tuple[tuple[int, ...], ...] = ()
    rules: tuple[str, ...] = ()
    cpu_moe: bool = False
    tensor_split: tuple[float, ...] = ()
    mtp: bool = False
    margins_mib: tuple[int, ...] = (MARGIN_MIB,)
    prompt_tokens: int = 4096
    answer_tokens: int = 512
    numa: NumaWish = "auto"
    huge_pages: PagesWish = "auto"
    dialect: Dialect = "ik"
    workers: tuple[Worker, ...] = ()


def check(request: Request, model: Model, node: Node) -> None:
    """Raises PlacementError for what no ledger can judge."""
    for key in ("kv_type_k", "kv_type_v"):
        value = getattr(request, key)
        if value not in KV_BYTES:
            near = difflib.get_close_matches(value, KV_BYTES, 1) or KV_BYTES
            raise PlacementError(f"{key}: {value!r} is not known; write {', '.join(near)}")
    for key in (
        "context",
        "parallel",
        "batch",
        "ubatch",
        "threads",
        "threads_batch",
        "prompt_tokens",
        "answer_tokens",
    ):
        value = getattr(request, key)
        if value is not None and value < 1:
            raise PlacementError(f"{key}: is {value}; give a number above 0")
    if not request.margins_mib or min(request.margins_mib) < 0:
        raise PlacementError(
            f"margins_mib: is {list(request.margins_mib)}; give MiB to keep free, one or one per GPU"
        )
    owners = {
        "gpu_experts": ("tensor-split", "the layers of each card, e.g. 0-12"),
        "rules": ("manual", "REGEX=DEVICE"),
    }
    for key, (owner, form) in owners.items():
        given, wanted = bool(getattr(request, key)), request.placement == owner
        if wanted and not given:
            raise PlacementError(f"{key}: placement {owner} needs it; give {form}")
        if given and not wanted:
            raise PlacementError(f"{key}: belongs to placement {owner} and to no other; leave it out")
    if request.tensor_split and request.placement in ("auto", "rpc"):
        raise PlacementError(
            f"tensor_split: placement {request.placement} chooses it; leave it out, or take another placement"
        )
    if request.placement == "rpc":
        _check_workers(request)
    if request.batch and request.ubatch and request.batch < request.ubatch:
        raise PlacementError(f"ubatch: {request.ubatch} is more than the batch of {request.batch}; raise batch")
    if max(len(request.gpu_experts), len(request.tensor_split)) > len(node.gpus):
        raise PlacementError(f"placement: names more GPUs than the machine's {len(node.gpus)}")
    if request.tensor_split and (len(request.tensor_split) < len(node.gpus) or sum(request.tensor_split) <= 0):
        raise PlacementError("tensor_split: give one share per GPU, and not all of them 0")
    layers = [index for group in request.gpu_experts for index in group]
    if len(set(layers)) < len(layers) or any(index < 0 for index in layers):
        raise PlacementError("gpu_experts: each layer can be on one GPU only")
    for rule in map(Rule.parse, request.rules):
        if rule.device not in ("CPU", *(f"CUDA{index}" for index in range(len(node.gpus)))):
            raise PlacementError(f"rule {rule}: the machine has {len(node.gpus)} GPU(s), so no {rule.device}")
    if request.mtp and not model.has_mtp:
        raise PlacementError("mtp: the file has no multi-token-prediction layer; take one that has")
    if request.mtp and request.parallel > 1:
        raise PlacementError(f"mtp: needs parallel 1, not {request.parallel}")


def _check_workers(request: Request) -> None:
    if not request.workers:
        raise PlacementError("placement: rpc needs workers; name the nodes that may hold layers")
    for worker in request.workers:
        if worker.memory == "cards" and not worker.gpus:
            raise PlacementError(f"rpc: {worker.name} has no card; write memory 'ram' or 'auto'")
    if request.mtp:
        raise PlacementError("mtp: is not for placement rpc; leave --spec-type out")
    if request.huge_pages == "static":
        raise PlacementError("huge_pages: static pages would hold the layers of other nodes, too; write thp")
