"""The services: a hardened systemd unit each, ready only when the model has answered warm."""

from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy

from moehost import engine, source
from moehost.settings import Node
from roles.base import PROGRAMS
from roles.llama_server.operations import api_keys, gone, running
from roles.operations import files, render


@deploy("Service")
def llama_server(node: Node) -> None:
    names = ["preflight", "wait-ready", "warm-up"]
    files(
        name="Install the programs of a start",
        contents={f"{PROGRAMS}/{name}": render(f"llama_server/{name}.j2") for name in names},
        mode="755",
    )
    gone(name="Take away services that are no longer described", services=[each.name for each in node.services])
    for index, service in host.loop(list(enumerate(node.services))):
        keys = Path(service.api_keys_file).expanduser().read_text() if service.api_keys_file else None
        api_keys(name=f"Have an API key for {service.name}", service=service.name, keys=keys)
        model = source.parse(service.model.source, service.model.revision)
        model_path = f"{node.models_dir}/{service.model.name}/{model.names[0]}"
        offload = engine.Offload(
            context=service.context,
            parallel=service.parallel,
            batch=service.batch,
            ubatch=service.ubatch,
            threads=service.threads or 2,
            threads_batch=service.threads_batch or service.threads or 2,
            kv_type_k=service.kv_type,
            kv_type_v=service.kv_type,
        )
        running(
            name=f"Run {service.name}, warm",
            service=service,
            index=index,
            offload=offload,
            model_path=model_path,
        )
