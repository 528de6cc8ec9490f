"""The instances of the running Molecule scenario, in their groups, with the settings that its `node.yml` has.

What a scenario's preparation has made of that file comes first: it knows keys that did not exist before.
An instance is a container, or a virtual machine where `moehost vm` has made one of its name.
"""

import os
from pathlib import Path

import yaml

from moehost.virtual import Machine

_groups = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
_files = [Path(os.environ[f"MOLECULE_{each}_DIRECTORY"], "node.yml") for each in ("EPHEMERAL", "SCENARIO")]
_settings = yaml.safe_load(next(path for path in _files if path.exists()).read_text())


def _host(instance):
    if Machine(instance).exists:
        return instance, _settings | Machine(instance).inventory_data
    return f"@podman/{instance}", _settings


for _name, _group in _groups.items():
    if _name not in ("all", "ungrouped"):
        globals()[_name] = [_host(instance) for instance in _group["hosts"]]
