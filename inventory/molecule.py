"""The instances of the running Molecule scenario, in their groups; `node.yml` of the scenario has their settings."""

import os
from pathlib import Path

import yaml

_groups = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
_settings = yaml.safe_load(Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "node.yml").read_text())

for _name, _group in _groups.items():
    if _name not in ("all", "ungrouped"):
        globals()[_name] = [(f"@podman/{instance}", _settings) for instance in _group["hosts"]]
