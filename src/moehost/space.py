"""The configurations of a service that `moehost tune` may choose from, and what is known of each without a launch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from moehost import calibration, settings
from moehost import plan as planning
from moehost.engine import Dialect
from moehost.gguf import GgufSet, Header
from moehost.hardware import Node, node_from_facts
from moehost.ledger import MIB
from moehost.model import Model
from moehost.plan import Plan
from moehost.settings import Service
from moehost.settings_tuning import Tuning
from moehost.speed import PUBLISHED, Constants, Prompts, Speed, Workload, threshold_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """One configuration, as settings of a service.

    + margin_mib: what the planner leaves free on each card, and so how many layers of experts it puts there
    + offload_batch: ik_llama.cpp's `offload-batch-size`; None leaves it to the planner
    + draft_tokens: tokens that multi-token prediction proposes; 0 without it
    + corrections_mib: by card, what the engine itself needs beside the ledger: no setting, the deploy finds it, too
    """

    ubatch: int
    threads: int
    threads_batch: int
    kv_type: str
    margin_mib: int
    offload_batch: int | None = None
    draft_tokens: int = 0
    corrections_mib: tuple[int, ...] = ()

    @property
    def server_args(self) -> list[str]:
        """Flags that no setting of its own stands for."""
        batch = self.offload_batch
        carried = ["-cuda", f"offload-batch-size={batch}"] if batch is not None else []
        drafts = ["--spec-type", f"mtp:n_max={self.draft_tokens}"] if self.draft_tokens else []
        return carried + drafts

    def settings(self, service: Service) -> dict[str, Any]:
        """The settings that make a service be like this."""
        keys = ("ubatch", "threads", "threads_batch", "kv_type", "margin_mib")
        more = {"server_args": [*service.server_args, *self.server_args]} if self.server_args else {}
        return {key: getattr(self, key) for key in keys} | more


@dataclass(frozen=True)
class Order:
    """What `moehost tune` was asked for.

    + service: name of the service
    + constants: of the speed model, where a file of the settings' has some
    + kv_types, branches, rounds, seed: see `Space`
    """

    service: str
    kv_types: tuple[str, ...]
    branches: tuple[str, ...]
    rounds: int
    seed: int
    constants: dict[str, Any] | None = None

    def key(self, node: settings.Node, found: Mapping[str, Any]) -> str:
        """What a search belongs to: this order, the service's settings, the machine, the engine and the model."""
        service = next(each for each in node.services if each.name == self.service)
        machine = node_from_facts(**found["machine"]).to_json()
        parts = [asdict(self), service.model_dump(), machine, found["release"], found["model_sha256"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Space:
    """What may be chosen for one service on one node.

    + current: the configuration that the settings lead to, where the search begins
    + constants: of the speed model, before anything is measured; None for the published ones
    + kv_types, branches: what may be changed; the settings' own is always allowed
    + rounds: how often each choice is measured in a probe
    """

    service: Service
    model_path: str
    found: GgufSet
    node: Node
    dialect: Dialect
    tuning: Tuning = planning.UNTOLD
    constants: Constants | None = None
    kv_types: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    rounds: int = 5
    seed: int = 0
    _plans: dict[Choice, Plan] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, order: Order, node: settings.Node, found: Mapping[str, Any]) -> Space:
        """The space of an order, from the settings of the node and the fact `roles.tune` keeps; raises ValueError."""
        index = [each.name for each in node.services].index(order.service)
        machine = found["machine"] | ({"nvidia_smi": ""} if node.gpu == "off" else {})
        return cls(
            service=node.services[index],
            model_path=found["model_path"],
            found=GgufSet(tuple(Header.from_json(each) for each in found["headers"])),
            node=node_from_facts(**machine),
            dialect=found["build"]["dialect"],
            tuning=node.tuning,
            constants=calibration.from_json(order.constants) if order.constants else None,
            kv_types=order.kv_types,
            branches=order.branches,
            rounds=order.rounds,
            seed=order.seed,
        )

    @cached_property
    def model(self) -> Model:
        """The model, layer by layer."""
        return Model.from_gguf(self.found)

    @cached_property
    def current(self) -> Choice:
        """The configuration as it is planned now; raises what a plan raises."""
        made = self._make(self.service, None).placement.offload
        kv_type, margin_mib = self.service.kv_type, self.service.margin_mib
        return Choice(made.ubatch, made.threads, made.threads_batch, kv_type, margin_mib)

    def plan(self, choice: Choice) -> Plan:
        """The plan of a choice, the layers on the cards anew for each; raises what a plan raises."""
        if choice not in self._plans:
            service = self.service.model_copy(update=choice.settings(self.service))
            fixed = tuple(max(choice.margin_mib + more, 0) for more in choice.corrections_mib)
            self._plans[choice] = self._make(service, fixed or None)
        return self._plans[choice]

    def _make(self, service: Service, margins_mib: tuple[int, ...] | None) -> Plan:
        constants = self.constants or PUBLISHED
        arguments = (service, self.model_path, self.found, self.node, self.dialect, constants)
        return planning.make(*arguments, margins_mib, self.tuning)

    def ubatches(self, ladder: Sequence[int], own: int) -> list[int]:
        """Those of a ladder that differ for the workload's prompt and fit into a slot, and the own one, in order."""
        prompt = self.service.workload.prompt_tokens
        slot = (self.service.context or self.model.context_length or own) // self.service.parallel
        enough = min((each for each in ladder if each >= prompt), default=ladder[-1])
        alike = {each for each in ladder if min(each, own) >= prompt}
        return sorted({own, *(each for each in ladder if each <= min(slot, enough) and each not in alike)})

    def layers_mib(self, layers: int) -> int:
        """What so many layers of experts take of each card, MiB."""
        sizes = [self.model.layers[index].routed_bytes for index in self.model.expert_layers]
        return -(-layers * max(sizes, default=0) // (max(len(self.node.gpus), 1) * MIB))

    @property
    def can_draft(self) -> bool:
        """Whether multi-token prediction can be tried."""
        return self.dialect == "ik" and self.model.has_mtp and self.service.parallel == 1

    def prompts(self, plan: Plan, choice: Choice) -> Prompts:
        """How the engine takes prompts with a choice."""
        planned = plan.placement.prompts
        if choice.offload_batch is None:
            return planned
        threshold = threshold_tokens(self.model, self.dialect, choice.offload_batch)
        return Prompts(planned.ubatch, threshold, planned.threads)

    def carried(self, plan: Plan, choice: Choice) -> tuple[bool, ...]:
        """Which of the workload's chunks, the full ones and the last, are carried to the card."""
        prompts, tokens = self.prompts(plan, choice), self.service.workload.prompt_tokens
        chunks = (min(prompts.ubatch, tokens), tokens % prompts.ubatch)
        return tuple(chunk >= prompts.threshold for chunk in chunks if chunk)

    def predicted_s(self, plan: Plan, choice: Choice, constants: Constants | None) -> float:
        """Predicted time of the workload's request; the speed model knows nothing of threads of decode or drafts."""
        workload = Workload(self.service.workload.prompt_tokens, self.service.workload.answer_tokens)
        speed = Speed(self.node, constants or self.constants or PUBLISHED)
        return speed.answer_s(plan.placement.load, workload, self.prompts(plan, choice))
