"""Decides where a model's tensors live on a machine, so that an answer takes the least time and nothing overflows.

Five placements lead to the same ledger: `auto` fills the GPUs with whole layers of experts and picks the ubatch,
`cpu-moe` and `tensor-split` are two command lines in wide use, `manual` takes rules as they are, and `rpc` gives
whole layers to other nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from moehost import ledger, memory_policy, remote_layers, split
from moehost.advice import advice, of_workers
from moehost.engine import Offload
from moehost.fill import Filling, Overdrawn, fillings
from moehost.hardware import Node
from moehost.ledger import Memory
from moehost.model import Model
from moehost.nearest import nearest
from moehost.placement import Placement
from moehost.request import BATCH, UBATCHES, Request, check
from moehost.rules import Rule, experts_rule
from moehost.speed import (
    DEFAULT_OFFLOAD_BATCH,
    PUBLISHED,
    Constants,
    Load,
    Prompts,
    Speed,
    Workload,
    threshold_tokens,
)
from moehost.worker import devices

# Decode on 16 cores was fastest with 13 threads in a published sweep: the driver and the server need some, too.
DECODE_THREADS_SHARE = 13 / 16
PROMPT_TOKENS = (512, 4096, 16384)


class DoesNotFit(Exception):
    """A request that needs more memory than a device has; `nearest` lists changes that make it fit, each alone."""

    def __init__(self, device: str, lacking_mib: int, nearest: Sequence[str]) -> None:
        hint = f"it fits with {', or '.join(nearest)}" if nearest else "use a smaller quantisation of the model"
        super().__init__(f"{device} lacks {lacking_mib} MiB; {hint}")
        self.device, self.lacking_mib, self.nearest = device, lacking_mib, tuple(nearest)


def place(model: Model, node: Node, request: Request, constants: Constants = PUBLISHED) -> Placement:
    """Places a model on a machine; the same model, machine and request always give the same placement.

    Raises PlacementError for a request that makes no sense, DoesNotFit for one that takes too much memory, RuleError
    for a rule that is not in the grammar.
    """
    check(request, model, node)
    try:
        return _Planner(model, node, request, constants).place()
    except Overdrawn as lack:

        def fits(**changes: Any) -> bool:
            try:
                _Planner(model, node, replace(request, **changes), constants).place()
            except Overdrawn:
                return False
            return True

        longest = request.context or model.context_length or 4096
        raise DoesNotFit(lack.device, lack.lacking_mib, list(nearest(request, longest, fits))) from None


class _Planner:
    """One request for one model on one machine."""

    def __init__(self, model: Model, node: Node, request: Request, constants: Constants) -> None:
        self.model, self.node, self.request = model, node, request
        self.speed = Speed(node, constants)
        self.workload = Workload(request.prompt_tokens, request.answer_tokens)
        self.remotes = devices(request.workers) if request.placement == "rpc" else ()
        self.spread = memory_policy.spread(request.numa, node.cpu.numa_nodes)
        self.pages = memory_policy.pages(request.huge_pages, request.dialect)
        self.memory = Memory(
            context=request.context or model.context_length or 4096,
            parallel=request.parallel,
            type_k=request.kv_type_k,
            type_v=request.kv_type_v,
            dialect=request.dialect,
            mtp=request.mtp,
            margins_mib=request.margins_mib,
        )

    def place(self) -> Placement:
        cores = self.node.physical_cores
        match self.request.placement:
            case "auto":
                return self._auto()
            case "cpu-moe":
                return self._preset((), gpu_layers=99, threads=13, threads_batch=24)
            case "tensor-split":
                pairs = [(layers, f"CUDA{index}") for index, layers in enumerate(self.request.gpu_experts) if layers]
                rules = tuple(experts_rule(layers, device) for layers, device in pairs)
                return self._preset(rules, gpu_layers=999, threads=24, threads_batch=24)
            case "rpc":
                return self._rpc()
            case "manual":
                return self._preset(self.request.rules, 99, _decode_threads(cores), cores)

    def _preset(self, rules: tuple[str, ...], gpu_layers: int, threads: int, threads_batch: int) -> Placement:
        """A placement that is asked for, not chosen; layers go where the engine's own split puts them."""
        request = self.request
        ubatch = request.ubatch or BATCH
        offload = replace(
            self._common(
                ubatch, request.threads or threads, request.threads_batch or request.threads or threads_batch
            ),
            gpu_layers=gpu_layers if self.node.gpus else None,
            tensor_overrides=rules,
            cpu_moe=request.placement != "manual" or request.cpu_moe,
            tensor_split=request.tensor_split,
        )
        return self._result(offload, self._engine_devices(ubatch), (f"{request.placement}: placed as asked for",))

    def _auto(self) -> Placement:
        return self._fastest([(ubatch, self._filled) for ubatch in self._ubatches()])

    def _ubatches(self) -> list[int]:
        request = self.request
        if request.ubatch:
            return [request.ubatch]
        limit = min(self.memory.context, request.batch or self.memory.context)
        sizes = [u for u in UBATCHES if u <= max(limit, UBATCHES[0])]
        # Where nothing is carried to a GPU, larger chunks gain nothing.
        return sizes if self.node.gpus else [min(sizes[-1], BATCH)]

    def _fastest(self, tries: Sequence[tuple[int, Callable[[int], Placement]]]) -> Placement:
        """Of what fits, the placement that answers the workload first, and why its ubatch was taken."""
        found: list[Placement] = []
        lacks: list[Overdrawn] = []
        for ubatch, make in tries:
            try:
                found.append(make(ubatch))
            except Overdrawn as lack:
                lacks.append(lack)
        if not found:
            raise min(lacks, key=lambda lack: lack.lacking_mib)
        best = min(found, key=lambda placement: (placement.answer_s, placement.offload.ubatch))
        by_ubatch: dict[int, float] = {}
        for placement in sorted(found, key=lambda each: -each.answer_s):
            by_ubatch[placement.offload.ubatch] = placement.answer_s
        if len(by_ubatch) == 1:
            return best
        times = ", ".join(f"{ubatch}: {by_ubatch[ubatch]:.1f} s" for ubatch in sorted(by_ubatch))
        tokens = f"{self.request.prompt_tokens} prompt and {self.request.answer_tokens} answer tokens"
        why = f"ubatch {best.offload.ubatch} is predicted fastest for {tokens} ({times})"
        return replace(best, why=(*best.why, why))

    def _rpc(self) -> Placement:
        """Whole layers on workers; says so where this node alone would be faster."""
        tries: list[tuple[int, Callable[[int], Placement]]] = []
        for ubatch in self._ubatches():
            fits_away, fits = _without_lack(self._away, ubatch), _without_lack(self._shared, ubatch)
            counts = remote_layers.counts(self.model, fits_away, fits)
            tries += [(ubatch, partial(self._shared, count)) for count in counts]
        best = self._fastest(tries)
        try:
            alone = _Planner(self.model, self.node, replace(self.request, placement="auto"), self.speed.constants)
            there = alone.place()
        except Overdrawn as lack:
            return replace(best, why=(*best.why, f"alone, this node lacks {lack.lacking_mib} MiB on {lack.device}"))
        warnings = best.warnings
        if there.answer_s <= best.answer_s:
            warnings += (
                f"rpc: the model fits on this node alone, and is faster there: {there.decode.expected:.1f} tok/s and "
                f"{there.answer_s:.1f} s for the workload, with workers {best.decode.expected:.1f} tok/s and "
                f"{best.answer_s:.1f} s; take placement auto",
            )
        return replace(best, warnings=warnings)

    def _away(self, count: int, ubatch: int) -> dict[int, str]:
        """The devices of so many layers that go to workers."""
        total = len(self.model.main_layers)
        layers = range(count) if self.node.gpus else range(total - count, total)
        return remote_layers.filled(self.model, self.memory, ubatch, self.remotes, layers)

    def _shared(self, count: int, ubatch: int) -> Placement:
        """So many layers on workers, and the rest here as `auto` has it."""
        model, node, request = self.model, self.node, self.request
        away, cores = self._away(count, ubatch), node.physical_cores
        common = self._common(ubatch, request.threads or _decode_threads(cores), request.threads_batch or cores)
        why = (f"{count} of {len(model.main_layers)} layers on workers",)

        def of(filling: Filling | None) -> Placement:
            where = remote_layers.layer_devices(model, away, filling)
            offload = remote_layers.told(common, model, self.memory, self.remotes, where, len(node.gpus))
            if filling:
                offload = replace(offload, tensor_overrides=remote_layers.experts_here(model, where, filling))
            return self._result(offload, where, why)

        if not node.gpus:
            return of(None)
        found = fillings(model, node, self.memory, ubatch, self.speed, self.workload, common.threads_batch, count)
        return min((of(each) for each in found), key=lambda placement: placement.answer_s)

    def _filled(self, ubatch: int) -> Placement:
        """The experts on the GPUs beside the dense part with which the workload is answered first at this ubatch."""
        model, node, request = self.model, self.node, self.request
        cores = node.physical_cores
        offload = self._common(ubatch, request.threads or _decode_threads(cores), request.threads_batch or cores)
        if not node.gpus:
            return self._result(offload, ("CPU",) * (len(model.layers) + 1), ("no GPU: everything is on the CPU",))
        found = fillings(model, node, self.memory, ubatch, self.speed, self.workload, offload.threads_batch)
        return min((self._of_filling(offload, each) for each in found), key=lambda placement: placement.answer_s)

    def _of_filling(self, offload: Offload, filling: Filling) -> Placement:
        model, node, ubatch = self.model, self.node, offload.ubatch
        resident, count = sum(map(len, filling.experts)), len(model.expert_layers)
        is_partial = resident < count
        rules = [experts_rule(layers, f"CUDA{gpu}") for gpu, layers in enumerate(filling.experts) if layers]
        offload = replace(
            offload,
            gpu_layers=99 if len(model.layers) < 99 else 999,
            tensor_overrides=tuple(rules) if is_partial else (),
            cpu_moe=is_partial,
            split_mode="layer" if len(node.gpus) > 1 else None,
            tensor_split=self._shares(filling.layer_gpus, ubatch) if len(node.gpus) > 1 else (),
        )
        why = f"{resident} of {count} layers of experts on the GPUs" + (": all that fit" if is_partial else "")
        return self._result(offload, tuple(f"CUDA{gpu}" for gpu in filling.layer_gpus), (why,))

    def _common(self, ubatch: int, threads: int, threads_batch: int) -> Offload:
        return Offload(
            context=self.memory.context,
            parallel=self.memory.parallel,
            batch=self.request.batch or max(BATCH, ubatch),
            ubatch=ubatch,
            threads=threads,
            threads_batch=threads_batch,
            kv_type_k=self.memory.type_k,
            kv_type_v=self.memory.type_v,
            numa=self.spread.flag,
            static_pages=self.pages == "static",
        )

    # Where layers go, as the engine of the request splits them.

    def _sizes(self, ubatch: int) -> tuple[list[float], float]:
        return split.layer_sizes(self.model, self.memory, ubatch)

    def _shares(self, layer_gpus: Sequence[int], ubatch: int) -> tuple[float, ...]:
        count = len(self.node.gpus)
        if self.memory.dialect == "ik":
            return split.shares_by_bytes(*self._sizes(ubatch), layer_gpus, count)
        return split.shares_by_count(layer_gpus, count)

    def _engine_devices(self, ubatch: int) -> tuple[str, ...]:
        """The device of each layer and of the output layer; without a split given, by the cards' free memory."""
        gpus = self.node.gpus
        if not gpus:
            return ("CPU",) * (len(self.model.layers) + 1)
        shares = self.request.tensor_split or [gpu.vram_mib - ledger.MARGIN_MIB for gpu in gpus]
        if self.memory.dialect == "ik":
            found = split.split_by_bytes(*self._sizes(ubatch), shares)
        else:
            found = split.split_by_count(len(self.model.layers), shares)
        return tuple(f"CUDA{gpu}" for gpu in found)

    # What follows from a decision.

    def _result(self, offload: Offload, layer_devices: tuple[str, ...], why: tuple[str, ...]) -> Placement:
        """The ledger and the prediction of an offload; raises Overdrawn for the first device that cannot hold it."""
        model, node, memory = self.model, self.node, self.memory
        rules = [Rule.parse(rule) for rule in offload.tensor_overrides]
        assignment = ledger.assign(model, layer_devices, rules, offload.cpu_moe, memory.mtp)
        rows = ledger.account(model, node, memory, offload.ubatch, layer_devices, assignment, self.remotes)
        rows[-1], prompt_cache_mib, checkpoints = ledger.with_host_cache(rows[-1], model, memory)
        for row in rows:
            if row.free_mib < 0:
                raise Overdrawn(row.device, -row.free_mib)
        offload = replace(offload, prompt_cache_mib=prompt_cache_mib, checkpoints=checkpoints)
        load = Load.of(model, len(node.gpus), layer_devices, assignment.experts, self.remotes)
        batch, threshold, reason = self._offload_batch(load, offload)
        reason += tuple(str(each) for each in load.remotes)
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if node.gpus else {}
        env |= memory_policy.environment(self.pages, memory.dialect, len(node.gpus))
        if batch and memory.dialect == "ik":
            offload = replace(offload, cuda_params=f"offload-batch-size={batch}")
        elif batch:
            env["GGML_OP_OFFLOAD_MIN_BATCH"] = str(batch)
        prompts = Prompts(offload.ubatch, threshold, offload.threads_batch)
        devices = [row.device for row in rows]
        return Placement(
            offload=offload,
            env=env,
            is_interleaved=self.spread.is_interleaved,
            pages=self.pages,
            experts={d: tuple(i for i, where in assignment.experts.items() if where == d) for d in devices},
            layer_devices=layer_devices,
            rows=tuple(rows),
            load=load,
            prompts=prompts,
            decode=self.speed.decode(load, self.speed.spread(model)),
            prompt_tok_s={tokens: tokens / self.speed.prompt_s(load, tokens, prompts) for tokens in PROMPT_TOKENS},
            answer_s=self.speed.answer_s(load, self.workload, prompts),
            warnings=(
                *advice(model, node, self.request, offload, layer_devices, assignment, rows),
                *of_workers(self.remotes, rows),
            ),
            why=(*why, *reason, f"predicted from {self.speed.constants.source}"),
        )

    def _offload_batch(self, load: Load, offload: Offload) -> tuple[int | None, int, tuple[str, ...]]:
        """What to set the engine's offload batch to, the chunk from which it then offloads, and why.

        Only `auto` and `rpc` set it, in ik_llama.cpp only below the default: a larger one would keep chunks on the
        CPU that published runs carried over. Of all batches that may be set it is the best for the workload.
        """
        model, dialect = self.model, self.memory.dialect
        is_free = self.request.placement in ("auto", "rpc")
        even = self.speed.break_even_tokens(load, offload.threads_batch) if is_free else None
        if even is None:
            return None, threshold_tokens(model, dialect), ()
        batches = [even]
        if dialect == "ik":
            # It counts tokens per expert, so the break-even lies between two batches.
            above = -(-even * model.experts_used // model.expert_count)
            batches = sorted({min(each, DEFAULT_OFFLOAD_BATCH) for each in (above, above - 1) if each}, reverse=True)

        def answer_s(batch: int) -> float:
            prompts = Prompts(offload.ubatch, threshold_tokens(model, dialect, batch), offload.threads_batch)
            return self.speed.answer_s(load, self.workload, prompts)

        batch = min(batches, key=answer_s)
        threshold = threshold_tokens(model, dialect, batch)
        if dialect == "ik" and batch == DEFAULT_OFFLOAD_BATCH:
            return None, threshold, ()
        why = f"offload batch {batch}: from {even} tokens on, carrying experts to the GPU is faster than the CPU"
        return batch, threshold, (why,)


def _without_lack(make: Callable[[int, int], object], ubatch: int) -> Callable[[int], bool]:
    """Whether so many layers can go away at this ubatch without overdrawing a device."""

    def fits(count: int) -> bool:
        try:
            make(count, ubatch)
        except Overdrawn:
            return False
        return True

    return fits


def _decode_threads(cores: int) -> int:
    return max(round(cores * DECODE_THREADS_SHARE), 1)
