"""What a service should be on this node: its plan, its files, and why it can't be, before anything is touched."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyinfra import host, logger
from pyinfra import state as pyinfra_state

from moehost import container, engine, firewall
from moehost.gguf import GgufSet, Header
from moehost.hardware import node_from_facts
from moehost.plan import REFUSALS, Plan, make
from moehost.settings import Node, Service
from moehost.speed import Constants
from roles.facts import Machine, from_json
from roles.ik_llama.facts import ENGINE
from roles.llama_server import check
from roles.llama_server.facts import (
    ArgumentsProbe,
    Containers,
    EngineContract,
    EngineHelp,
    Generated,
    Inputs,
    ModelHeaders,
    ServiceState,
)
from roles.llama_server.units import Source, folder, paths
from roles.llama_server.workers import NotDeployed, silent, workers
from roles.models.facts import StoredModel
from roles.models.operations import LIBRARY


class Refused(Exception):
    """Why a service can't run as described: one line."""


class NotYet(Exception):
    """There is no engine or no model: only the plan of a deploy comes here, the steps before this one make both."""


@dataclass(frozen=True)
class Wanted:
    """A service on one release of the engine.

    + source: what its unit is made from
    + generation: what its process is recognised by: a hash of all that it reads only at its start
    + generated: for a Quadlet, what Podman makes of it; empty where its process runs already
    + plan_json: the plan as it is kept
    + tried: the record of the engine's own check of the plan, if there is one
    + state: what the fact ServiceState said of its unit
    """

    source: Source
    generation: str
    generated: str
    plan_json: dict[str, Any]
    tried: dict[str, Any] | None
    state: dict[str, Any]

    @property
    def service(self) -> Service:
        """Its settings."""
        return self.source.service

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return self.source.plan

    @property
    def plan_path(self) -> str:
        """Where the plan is kept."""
        return f"{folder(self.service.name)}/plan.json"

    @property
    def contents(self) -> dict[str, str]:
        """Its files, by path."""
        texts = {self.source.path: self.source.text(self.generation), self.plan_path: _text(self.plan_json)}
        if self.tried:
            texts[f"{folder(self.service.name)}/rehearsal.json"] = _text(self.tried)
        return texts

    @property
    def leftovers(self) -> list[str]:
        """Paths where it must have nothing: the unit of the other runtime."""
        return [path for path in paths(self.service.name) if path != self.source.path]

    @property
    def trial(self) -> str:
        """Its unit as systemd reads it, with the very release that the plan is for."""
        if self.source.is_quadlet:
            # Where the text came from is gone by then.
            return re.sub(r"^SourcePath=.*\n", "", self.generated, flags=re.MULTILINE)
        return self.source.text(self.generation, f"releases/{self.source.release}")


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


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
        raise NotYet(
            f"test -e {link}/bin/llama-server -a -e {model_dir}/manifest.json -a ! -e {model_dir}/damaged.json || "
            f"{{ echo {link} or {model_dir} is not there or damaged: deploy again >&2; exit 1; }}"
        )
    build = from_json(contract["build"])
    if not build:
        raise Refused(f"{link}/build.json is cut off; remove that release and deploy again")
    model_path = f"{model_dir}/{manifest.files[0].name}"
    try:
        headers = host.get_fact(ModelHeaders, path=model_path, library=LIBRARY)
        if not headers:
            raise ValueError(f"{model_path} has no header that can be read; fetch the model again")
        facts = host.get_fact(Machine)
        machine = node_from_facts(**(facts | {"nvidia_smi": ""} if node.gpu == "off" else facts))
        found = GgufSet(tuple(Header.from_json(each) for each in headers))
        state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
        helpers = workers(service, build)
        planned = partial(make, service, model_path, found, machine, build["dialect"], constants, workers=helpers)
        plan = planned(tuning=node.tuning)
        key = check.key(plan, contract["build"])
        tried = check.tried(service, plan, key, folder(service.name), build["dialect"], state, link)
        if tried:
            plan = planned(margins_mib=tuple(tried["margins_mib"]), tuning=node.tuning)
        allowed = firewall.addresses(node, service)
        source = Source(service, plan, model_path, contract["release"], allowed)
    except NotDeployed as name:
        raise NotYet(f"{{ echo {name} has no engine yet: deploy it, too >&2; exit 1; }}") from None
    except REFUSALS as reason:
        raise Refused(f"{where}: {reason}") from None

    inputs = host.get_fact(Inputs, engine=link, model_dir=model_dir, keys=f"{folder(service.name)}/api-keys")
    if service.runtime == "container":
        there = host.get_fact(Containers, image=source.image)
        source = replace(source, podman=container.version(there["podman"]))
        if problem := _container_problem(source, there):
            raise Refused(f"{where}.runtime: {problem}")
        inputs += f"\n{there['image']}"
    generation = hashlib.sha256(f"{source.text(generation='')}\n{inputs}".encode()).hexdigest()[:16]
    name, generated = f"{build['dialect']} {engine.Version.parse(contract['version']).text}", ""
    if state.get("generation") != generation:
        if holder := state.get("port_holder"):
            program, _, pid = holder.replace('"', "").partition(",pid=")
            raise Refused(
                f"{where}.port: {service.port} is taken by {program} (pid {pid}); choose another or stop that program"
            )
        known = host.get_fact(EngineHelp, engine=link)
        if unknown := engine.unknown_flags(plan.arguments, known, build["dialect"]):
            raise Refused(f"{where}: {name} does not know {', '.join(unknown)}; see server_args")
        arguments = engine.probe_arguments(plan.arguments)
        if refusal := engine.refusal(host.get_fact(ArgumentsProbe, engine=link, arguments=arguments)):
            raise Refused(f"{where}: {name} refuses these arguments: {refusal}")
        if pyinfra_state.is_executing and (problem := silent(service, helpers)):
            raise Refused(f"{where}.{problem}")
        if source.is_quadlet:
            generated = _generated(source, generation, where)
    return Wanted(source, generation, generated, plan.to_json(name), tried, state)


def _container_problem(source: Source, there: dict[str, str]) -> str | None:
    """Why the service can't run in a container on this node, or None."""
    if source.podman < container.FIRST_PODMAN:
        have = there["podman"] or "no Podman"
        return f"the node has {have}, and a service needs 4.0 or later; upgrade it, or use runtime 'native'"
    if not there["image"]:
        return (
            f"there is no image {source.image}; a deploy with engine.image makes that of the release it builds, so "
            "build this one again, or use runtime 'native'"
        )
    return None


def _generated(source: Source, generation: str, where: str) -> str:
    """What Podman makes of the Quadlet; raises Refused where its command line is not that of the plan."""
    unit = source.service.unit
    made = host.get_fact(Generated, quadlet=source.text(generation), unit=unit)
    if not made["unit"]:
        said = made["said"].strip() or "it says nothing"
        raise Refused(f"{where}.runtime: Podman makes no unit of its Quadlet: {said}")
    found = container.arguments(made["unit"], source.image)
    if found != source.plan.arguments:
        changed = container.difference(source.plan.arguments, found)
        raise Refused(f"{where}.runtime: Podman's generator changes the plan: {changed}; use runtime 'native'")
    return made["unit"]


def tell(name: str, lines: list[str]) -> None:
    """Say something about a service."""
    for line in lines:
        logger.info("[%s] %s: %s", host.name, name, line)
