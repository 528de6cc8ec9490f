"""The instances of the running Molecule scenario, in their groups, with the settings that its `node.yml` has.

What a scenario's preparation has made of that file comes first: it knows keys that did not exist before. An instance
with a file of its own, `NAME.yml`, has those settings instead; INSTANCE in a file is the instance's name.
An instance is a container, or a virtual machine where `moehost vm` has made one of its name.
"""

import os
from pathlib import Path

import yaml

from moehost.virtual import Machine

_groups = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
_files = [Path(os.environ[f"MOLECULE_{each}_DIRECTORY"], "node.yml") for each in ("EPHEMERAL", "SCENARIO")]
_shared = next(path for path in _files if path.exists())


def _host(instance):
    own = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], f"{instance}.yml")
    text = (own if own.exists() else _shared).read_text()
    settings = yaml.safe_load(text.replace("INSTANCE", instance))
    if Machine(instance).exists:
        return instance, settings | Machine(instance).inventory_data
    return f"@podman/{instance}", settings


for _name, _group in _groups.items():
    if _name not in ("all", "ungrouped"):
        globals()[_name] = [_host(instance) for instance in _group["hosts"]]
