"""The model store: what the services serve, fetched by the node itself and verified."""

from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy

import moehost
from moehost import fetch, inspection, rehearse
from moehost.settings import Node
from roles.models.operations import TOKEN, owned, stored
from roles.models.verification import LIBRARY, inspected
from roles.operations import files

# What fetches, tries plans and inspects on the node.
MODULES = sorted({*fetch.MODULES, *rehearse.MODULES, *inspection.MODULES})


@deploy("Models")
def models(node: Node) -> None:
    package = Path(moehost.__file__).parent
    files(
        name="Install the programs that fetch models and try plans",
        contents={f"{LIBRARY}/moehost/{each}.py": (package / f"{each}.py").read_text() for each in MODULES},
    )
    if node.hf_token_file:
        files(
            name="Install the hub's token",
            contents={TOKEN: Path(node.hf_token_file).expanduser().read_text()},
            mode="600",
        )
    owned(name="Have the store belong to the account that fetches", store=node.models_dir)
    for model in host.loop(node.models):
        stored(name=f"Have {model.name} in the store", node=node, model=model)
    inspected(name="Compare the models with their checksums now and then", node=node)
