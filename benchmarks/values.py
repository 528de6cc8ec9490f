"""What the playbook is told: what deploy.py works out for the same node, so that both bring the same content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moehost
from benchmarks.nodes import Node
from moehost import confined, firewall, gguf, sandbox, source
from moehost.engine import Dialect
from moehost.files import sha256_of
from moehost.hardware import node_from_facts
from moehost.plan import make
from moehost.settings import Model
from moehost.settings import Node as Settings
from moehost.source import ModelFile
from moehost.store import Manifest
from moehost.unit import exec_line
from roles.base import PACKAGES, PROGRAMS
from roles.facts import Machine, OsRelease
from roles.ik_llama.facts import ENGINE
from roles.ik_llama.operations import NEXT_SUITE
from roles.llama_server.units import Source
from roles.models import MODULES
from roles.models.verification import LIBRARY, command

DIALECT: Dialect = "llama.cpp"


def of_node(node: Node) -> dict[str, Any]:
    """What is asked of a node, the suite after its own, and the mirror that it was made from."""
    # apt itself names none before it has fetched its lists.
    sources = sandbox.execute(node.name, "cat", "/etc/apt/sources.list")
    return {
        "machine": node.ask(Machine),
        "suite": NEXT_SUITE[node.ask(OsRelease)["VERSION_CODENAME"]],
        "mirror": next(word for word in sources.split() if "://" in word),
    }


def values(settings: Settings, machine: dict[str, str], suite: str, mirror: str, file: Path) -> dict[str, Any]:
    """
    The variables of `ansible/site.yml`.

    + settings: of the node, with one service
    + machine: the fact `Machine`
    + suite, mirror: where the engine's package comes from
    + file: the model on this computer
    """
    (service,) = settings.services
    header = gguf.read_file(file)
    found = gguf.join([header])
    path = f"{settings.models_dir}/{service.model.name}/{file.name}"
    plan = make(
        service, path, found, node_from_facts(**machine | {"nvidia_smi": ""}), DIALECT, tuning=settings.tuning
    )
    unit = Source(service, plan, path, "", firewall.addresses(settings, service))
    derived = {key: getattr(service, key) for key in ("has_sys_nice", "url_host", "start_limit_s")}
    return {
        **unit.values,
        "service": service.model_dump() | derived,
        # Not by the names that templates use: what a task says counts less than what the playbook is told.
        "command_line": exec_line([f"{ENGINE}/current/bin/llama-server", *plan.arguments]),
        "packages": PACKAGES,
        "suite": suite,
        "mirror": mirror,
        "keep_releases": settings.engine.keep_releases,
        "models_dir": settings.models_dir,
        "verify_models": settings.verify_models,
        "package": str(Path(moehost.__file__).parent),
        "modules": MODULES,
        "library": LIBRARY,
        "programs": PROGRAMS,
        "properties": confined.inspect(settings.models_dir),
        "inspection": exec_line(command(settings.models_dir)),
        "model": {
            "name": service.model.name,
            "file": str(file),
            "manifest": _text(_manifest(service.model, file, found).to_json()),
        },
        "plan": _text(plan.to_json(DIALECT)),
    }


def _manifest(model: Model, file: Path, found: gguf.GgufSet) -> Manifest:
    files = (ModelFile(file.name, file.stat().st_size, sha256_of(file)),)
    architecture = str(found.metadata["general.architecture"])
    return Manifest(model.name, model.source, model.revision, files, architecture, len(found.tensors))


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def model_file(settings: Settings) -> Path:
    """The only model of a node, which comes from a file of this computer."""
    (service,) = settings.services
    found = source.parse(service.model.source, service.model.revision)
    assert isinstance(found, source.FileSource)  # noqa: S101  (for the type checker)
    return Path(found.folder, found.names[0]).resolve()
