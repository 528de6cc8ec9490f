"""The instances of the running Molecule scenario, in their groups, with the settings that its `node.yml` has.

What a scenario's preparation has made of that file comes first: it knows keys that did not exist before.
"""

import os
from pathlib import Path

import yaml

_groups = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
_files = [Path(os.environ[f"MOLECULE_{each}_DIRECTORY"], "node.yml") for each in ("EPHEMERAL", "SCENARIO")]
_settings = yaml.safe_load(next(path for path in _files if path.exists()).read_text())

for _name, _group in _groups.items():
    if _name not in ("all", "ungrouped"):
        globals()[_name] = [(f"@podman/{instance}", _settings) for instance in _group["hosts"]]
