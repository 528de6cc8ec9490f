"""A deploy of its own, which changes nothing: what a search for the fastest configuration must know of the node.

    pyinfra INVENTORY --limit HOST roles/tune/look.py --data x_folder=FOLDER -y

FOLDER on this computer holds `order.json`, and gets `found.json`; `moehost tune` makes it.
"""

import json
from pathlib import Path
from typing import Any

from pyinfra import host

from moehost.settings import Node, Service
from roles.facts import Machine, from_json
from roles.ik_llama.facts import ENGINE
from roles.llama_server.facts import EngineContract, ModelHeaders, ServiceState
from roles.models.facts import StoredModel
from roles.models.operations import LIBRARY
from roles.node import this_node
from roles.tune.facts import Programs
from roles.tune.tuned import UNIT


def found(node: Node, service: Service) -> dict[str, Any]:
    """What a search must know, or why there can be none: `refusal`."""
    engine, folder = f"{ENGINE}/current", f"{node.models_dir}/{service.model.name}"
    contract = host.get_fact(EngineContract, engine=engine)
    build = from_json(contract["build"]) if contract else None
    if not build:
        return {"refusal": "there is no engine; deploy first (pyinfra inventory deploy.py)"}
    programs = host.get_fact(Programs, engine=engine)
    if not programs:
        lacks = f"the engine {contract['release']} has no llama-bench"
        return {"refusal": f"{lacks}; build it anew, or take another package"}
    manifest = host.get_fact(StoredModel, folder=folder)
    path = f"{folder}/{manifest.files[0].name}" if manifest else folder
    headers = host.get_fact(ModelHeaders, path=path, library=LIBRARY) if manifest else []
    if not manifest or not headers:
        return {"refusal": f"{path}: there is no whole model; deploy first (pyinfra inventory deploy.py)"}
    # Another search has the node, and its service stands still for it.
    if host.get_fact(ServiceState, unit=UNIT, port=service.port).get("ActiveState") in ("active", "activating"):
        return {"refusal": f"{UNIT} is at work already; wait for it, or stop it on the node"}
    state = host.get_fact(ServiceState, unit=service.unit, port=service.port)
    return {
        "machine": host.get_fact(Machine),
        "release": contract["release"],
        "build": build,
        "programs": programs,
        "model_path": path,
        "model_sha256": [each.sha256 for each in manifest.files],
        "headers": headers,
        "is_running": state.get("ActiveState") in ("active", "activating"),
    }


if node := this_node():
    where = Path(host.data.x_folder)
    name = json.loads((where / "order.json").read_text())["service"]
    service = next(each for each in node.services if each.name == name)
    (where / "found.json").write_text(json.dumps(found(node, service)))
