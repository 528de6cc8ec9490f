"""What a service should be on this node: its plan, its files, and why it can't be, before anything is touched."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pyinfra import host, logger

from moehost import engine
from moehost.gguf import GgufSet, Header
from moehost.hardware import node_from_facts
from moehost.plan import REFUSALS, Plan, make
from moehost.settings import Node, Service
from moehost.speed import Constants
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.facts import Machine, from_json
from roles.ik_llama.facts import ENGINE
from roles.llama_server import check
from roles.llama_server.facts import ArgumentsProbe, EngineContract, Inputs, ModelHeaders, ServiceState
from roles.models.facts import StoredModel
from roles.models.operations import LIBRARY
from roles.operations import render

UNITS = "/etc/systemd/system"


class Refused(Exception):
    """Why a service can't run as described: one line."""


class NotYet(Exception):
    """There is no engine or no model: only the plan of a deploy comes here, the steps before this one make both."""


@dataclass(frozen=True)
class Wanted:
    """A service on one release of the engine.

    + generation: what its process is recognised by: a hash of all that it reads only at its start
    + plan_json: the plan as it is kept
    + tried: the record of the engine's own check of the plan, if there is one
    """

    service: Service
    plan: Plan
    model_path: str
    generation: str
    plan_json: dict[str, Any]
    tried: dict[str, Any] | None

    @property
    def plan_path(self) -> str:
        """Where the plan is kept."""
        return f"{folder(self.service.name)}/plan.json"

    @property
    def contents(self) -> dict[str, str]:
        """Its files, by path."""
        texts = {f"{UNITS}/{self.service.unit}": self.unit("current"), self.plan_path: _text(self.plan_json)}
        if self.tried:
            texts[f"{folder(self.service.name)}/rehearsal.json"] = _text(self.tried)
        return texts

    def unit(self, release: str) -> str:
        """Its unit, with the engine from a folder or link below `/opt/moehost/engine`."""
        return unit_text(self.service, self.plan, self.model_path, self.generation, release)


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def folder(service: str) -> str:
    """Where a service's plan and keys are."""
    return f"/etc/moehost/{service}"


def unit_text(service: Service, plan: Plan, model_path: str, generation: str, release: str = "current") -> str:
    """The unit of a service; `generation` is what the running process is recognised by."""
    placement = plan.placement
    return render(
        "llama_server/llama-server.service.j2",
        service=service,
        exec_start=exec_line([f"{ENGINE}/{release}/bin/llama-server", *plan.arguments]),
        environment=placement.env,
        model_path=model_path,
        model_dir=model_path.rpartition("/")[0],
        host_mib=placement.host_mib,
        warm_up_tokens=placement.offload.warm_up_tokens,
        folder=folder(service.name),
        programs=PROGRAMS,
        gpus=len(plan.node.gpus),
        generation=generation,
    )


def wanted(node: Node, service: Service, index: int, constants: Constants, release: str) -> Wanted:
    """
    What a service should be on this node, with the engine that the link `release` (`current` or `next`) leads to.

    Its command line has been checked against that engine, unless its process runs with it already. Raises Refused,
    and NotYet while there is no engine or no model.

    + index: where the service stands in the settings, for messages
    + constants: of the speed model
    """
    where, model_dir = f"services[{index}]", f"{node.models_dir}/{service.model.name}"
    link = f"{ENGINE}/{release}"
    contract = host.get_fact(EngineContract, engine=link)
    manifest = host.get_fact(StoredModel, folder=model_dir)
    if not contract or not manifest:
        raise NotYet(f"test -e {link}/bin/llama-server -a -e {model_dir}/manifest.json")
    build = from_json(contract["build"])
    if not build:
        raise Refused(f"{link}/build.json is cut off; remove that release and deploy again")
    model_path = f"{model_dir}/{manifest.files[0].name}"
    try:
        headers = host.get_fact(ModelHeaders, path=model_path, library=LIBRARY)
        if not headers:
            raise ValueError(f"{model_path} has no header that can be read; fetch the model again")
        machine = node_from_facts(**host.get_fact(Machine))
        found = GgufSet(tuple(Header.from_json(each) for each in headers))
        state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        plan = make(service, model_path, found, machine, build["dialect"], constants)
        key = check.key(plan, contract["build"])
        tried = check.tried(service, plan, key, folder(service.name), build["dialect"], state, link)
        if tried:
            margins = tuple(tried["margins_mib"])
            plan = make(service, model_path, found, machine, build["dialect"], constants, margins)
    except REFUSALS as reason:
        raise Refused(f"{where}: {reason}") from None

    inputs = host.get_fact(Inputs, engine=link, model_dir=model_dir, keys=f"{folder(service.name)}/api-keys")
    blank = unit_text(service, plan, model_path, generation="")
    generation = hashlib.sha256(f"{blank}\n{inputs}".encode()).hexdigest()[:16]
    name = f"{build['dialect']} {engine.Version.parse(contract['version']).text}"
    if state.get("generation") != generation:
        if holder := state.get("port_holder"):
            program, _, pid = holder.replace('"', "").partition(",pid=")
            raise Refused(
                f"{where}.port: {service.port} is taken by {program} (pid {pid}); choose another or stop that program"
            )
        if unknown := engine.unknown_flags(plan.arguments, contract["help"], build["dialect"]):
            raise Refused(f"{where}: {name} does not know {', '.join(unknown)}; see server_args")
        arguments = engine.probe_arguments(plan.arguments)
        if refusal := engine.refusal(host.get_fact(ArgumentsProbe, engine=link, arguments=arguments)):
            raise Refused(f"{where}: {name} refuses these arguments: {refusal}")
    return Wanted(service, plan, model_path, generation, plan.to_json(name), tried)


def tell(name: str, lines: list[str]) -> None:
    """Say something about a service."""
    for line in lines:
        logger.info("[%s] %s: %s", host.name, name, line)
