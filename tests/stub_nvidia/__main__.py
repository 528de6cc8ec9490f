"""`python -m tests.stub_nvidia CONTAINER`: give a container node stub cards; prints the settings it then needs."""

import argparse
import sys
from pathlib import Path

import yaml

from tests.stub_nvidia import node

parser = argparse.ArgumentParser(prog="python -m tests.stub_nvidia", description=__doc__)
parser.add_argument("container", help="name of a running container with systemd")
parser.add_argument("--cards", type=int, default=2, help="how many cards it gets")
parser.add_argument("--settings", type=Path, help="node.yml that the settings are added to")
arguments = parser.parse_args()

settings = yaml.safe_load(arguments.settings.read_text()) if arguments.settings else {}
for key, values in node.prepare(arguments.container, arguments.cards).items():
    settings[key] = {**settings.get(key, {}), **values}
yaml.safe_dump(settings, sys.stdout, sort_keys=False)
