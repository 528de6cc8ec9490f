"""The services: a hardened systemd unit each, planned for this node, ready only when the model has answered warm."""

import json
from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy

from moehost import calibration, keys
from moehost.settings import Node
from moehost.speed import PUBLISHED
from roles.base import PROGRAMS
from roles.llama_server.operations import api_keys, gone, running
from roles.llama_server.switch import switched
from roles.operations import files, render


@deploy("Service")
def llama_server(node: Node) -> None:
    names = ["preflight", "wait-ready", "warm-up", "cards-in-use", "pages-in-use", "keys-secret"]
    if any(each.rpc for each in node.services):
        names.append("workers-answer")
    files(
        name="Install the programs of a start",
        contents={f"{PROGRAMS}/{name}": render(f"llama_server/{name}.j2") for name in names},
        mode="755",
    )
    gone(name="Take away services that are no longer described", services=[each.name for each in node.services])
    measured = node.calibration_file
    constants = calibration.from_json(json.loads(_read(measured))) if measured else PUBLISHED
    for service in host.loop(node.services):
        owners = service.api_keys_file
        # Mistakes in it have been named before.
        found = keys.service_keys(_read(owners), owners) if owners else None
        api_keys(name=f"Have an API key for {service.name}", service=service.name, keys=found)
    switched(name="Switch to the engine that is next", node=node, constants=constants)
    for index, service in host.loop(list(enumerate(node.services))):
        running(name=f"Run {service.name}, warm", node=node, service=service, index=index, constants=constants)


def _read(path: str) -> str:
    return Path(path).expanduser().read_text()
