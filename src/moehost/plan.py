"""From what an owner wants and what a node has to the command line of a service, and how two plans differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from moehost import engine, settings
from moehost.engine import Dialect
from moehost.gguf import GgufSet
from moehost.hardware import Node
from moehost.huge_page_pools import PAGE_MIB, pages
from moehost.memory_policy import LEAST_SHARE
from moehost.model import Model
from moehost.placement import Placement
from moehost.planner import DoesNotFit, place
from moehost.request import Request
from moehost.settings import Service
from moehost.settings_tuning import Tuning
from moehost.speed import PUBLISHED, Constants
from moehost.worker import Worker

# A card that holds less than this share of its ledger was not used: the engine runs on the CPU.
FALLBACK_SHARE = 0.5
# What is planned for a machine whose settings nobody knows.
UNTOLD = Tuning.model_validate({})
# What a wish that can't be fulfilled raises; each says in one line what, where, and how to mend it.
REFUSALS = (ValueError, DoesNotFit)


@dataclass(frozen=True)
class Plan:
    """A placement together with the arguments of llama-server, and the model and machine it was made for.

    + pool_mib: what the model takes of static huge pages: its whole files, also what goes on to the cards
    """

    placement: Placement
    arguments: list[str]
    model: Model
    node: Node
    tuning: Tuning
    pool_mib: int

    @property
    def needed_mib(self) -> int:
        """What the server takes of the host's ordinary memory before it caches prompts."""
        placement = self.placement
        return placement.host_mib - (placement.host_weights_mib if placement.pages == "static" else 0)

    @property
    def least_huge_mib(self) -> int:
        """What must lie on huge pages when the service is ready; 0 where that is a wish, or nobody's."""
        is_required = self.tuning.huge_pages in ("thp", "static")
        return int(LEAST_SHARE * self.placement.host_weights_mib) if is_required else 0

    @property
    def least_mib(self) -> list[int]:
        """What each card must hold when the service is ready, in their order: else the engine runs on the CPU."""
        return [int(FALLBACK_SHARE * row.used_mib) for row in self.placement.rows[: len(self.node.gpus)]]

    def to_json(self, engine_name: str) -> dict[str, Any]:
        """The plan contract, and beside it the facts that the plan follows from."""
        facts = {
            "model": {"name": self.model.name, "architecture": self.model.architecture},
            "node": self.node.to_json(),
        }
        return {**self.placement.to_json(engine_name, self.arguments), **facts}


def make(
    service: Service,
    model_path: str,
    found: GgufSet,
    node: Node,
    dialect: Dialect,
    constants: Constants = PUBLISHED,
    margins_mib: tuple[int, ...] | None = None,
    tuning: Tuning = UNTOLD,
    workers: tuple[Worker, ...] = (),
) -> Plan:
    """Plans a service; the same settings, model and machine always give the same plan.

    + model_path: first file of the model, where the engine finds it
    + found: the model's headers
    + margins_mib: what stays free on each card, where an engine's own sizes have corrected the settings'
    + tuning: how the host is tuned
    + workers: nodes that may hold layers

    Raises one of REFUSALS.
    """
    model = Model.from_gguf(found)
    wish = replace(request(service, dialect, tuning), workers=workers)
    if margins_mib is not None:
        wish = replace(wish, margins_mib=margins_mib)
    placement = place(model, node, wish, constants)
    arguments = engine.command_line(service, model_path, placement.offload, dialect)
    pool_mib = 0
    if placement.pages == "static":
        size = tuning.huge_page_size
        pool_mib = pages((header.file_size_bytes for header in found.headers), size) * PAGE_MIB[size]
    return Plan(placement, arguments, model, node, tuning, pool_mib)


def request(service: Service, dialect: Dialect, tuning: Tuning = UNTOLD) -> Request:
    """What a service's settings, and its host's, ask of the planner."""
    return Request(
        placement=service.placement,
        context=service.context,
        kv_type_k=service.kv_type,
        kv_type_v=service.kv_type,
        parallel=service.parallel,
        batch=service.batch,
        ubatch=service.ubatch,
        threads=service.threads,
        threads_batch=service.threads_batch,
        gpu_experts=tuple(settings.layers(each) for each in service.gpu_experts),
        rules=tuple(service.rules),
        cpu_moe=service.cpu_moe if service.placement == "manual" else False,
        tensor_split=tuple(service.tensor_split),
        mtp=("--spec-type", "mtp")
        in ((flag, value.partition(":")[0]) for flag, value in pairwise(service.server_args)),
        margins_mib=(service.margin_mib,),
        prompt_tokens=service.workload.prompt_tokens,
        answer_tokens=service.workload.answer_tokens,
        numa=service.numa,
        huge_pages=tuning.huge_pages,
        dialect=dialect,
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What an owner should know about a plan that replaces another, a line each: cards, experts, speed, flags.

    Both in the form of `Plan.to_json`; a plan of an older form differs in what it lacks.
    """
    cards = [[card["name"] for card in plan.get("node", {}).get("gpus", [])] for plan in (before, after)]
    if cards[0] != cards[1]:
        yield f"cards: {', '.join(cards[0]) or 'none'} -> {', '.join(cards[1]) or 'none'}"
    for device in dict.fromkeys([*before.get("experts", {}), *after.get("experts", {})]):
        counts = [len(plan.get("experts", {}).get(device, [])) for plan in (before, after)]
        if counts[0] != counts[1]:
            yield f"layers of experts on {device}: {counts[0]} -> {counts[1]}"
    rates = [plan.get("prediction", {}).get("decode_tok_s") for plan in (before, after)]
    if rates[0] != rates[1]:
        yield f"predicted decode: {rates[0]} -> {rates[1]} tok/s"
    flags = [_flags(plan.get("argv", [])) for plan in (before, after)]
    for flag in dict.fromkeys([*flags[0], *flags[1]]):
        values = [each.get(flag) for each in flags]
        if values[0] != values[1]:
            yield f"{flag}: {_shown(values[0])} -> {_shown(values[1])}"


def _flags(arguments: list[str]) -> dict[str, str]:
    """The flags of a command line with their values; a flag that stands there twice has its last value."""
    flags: dict[str, str] = {}
    flag = ""
    for word in arguments:
        if engine.is_flag(word):
            flag = word
            flags[flag] = ""
        elif flag:
            flags[flag] = f"{flags[flag]} {word}".strip()
    return flags


def _shown(value: str | None) -> str:
    return "absent" if value is None else value or "set"
