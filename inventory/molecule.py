"""The instances of the running Molecule scenario, in their groups, with the data that the scenario gives them."""

import os
from pathlib import Path

import yaml

_inventory = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())

for _name, _group in _inventory.items():
    if _name not in ("all", "ungrouped"):
        globals()[_name] = [
            (f"@podman/{instance}", (data or {}).get("moehost", {})) for instance, data in _group["hosts"].items()
        ]
