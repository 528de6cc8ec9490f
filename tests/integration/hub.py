"""A hub on the node's loopback, for a model that the node fetches: `hub.py FOLDER REVISION RATE_BYTES_S`.

Runs on the node beside a copy of tests/fixtures/http_server.py; FOLDER/token holds the
token it wants, and its address is written to FOLDER/url.
"""

import sys
import time
from pathlib import Path

from http_server import FileHost, Hub

folder, revision, rate_bytes_s = sys.argv[1:]
token = Path(folder, "token").read_text()
files = {f"tiny/{path.name}": path.read_bytes() for path in Path(folder).glob("*.gguf")}
with FileHost({}) as storage, Hub(storage, files, revision, token) as hub:
    storage.rate_bytes_s = float(rate_bytes_s)
    Path(folder, "url.new").write_text(hub.url)
    Path(folder, "url.new").rename(Path(folder, "url"))
    while True:
        time.sleep(3600)
