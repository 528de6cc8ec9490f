"""What a person does in an editor: put settings into a node's file. `editor.py SETTINGS.json FILE`."""

import json
import sys
from pathlib import Path

settings, file = map(Path, sys.argv[1:])
file.write_text(json.dumps(json.loads(file.read_text()) | json.loads(settings.read_text()), indent=2))
