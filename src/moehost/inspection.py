"""Compares the models in the store with their manifests, every byte: the program that a node runs now and then.

    python3 -m moehost.inspection STORE [MODEL]    0: all as it was; 1: a line for each file that is not; 2: bad input
    python3 -m moehost.inspection --list STORE     the models as JSON, without reading them

What is damaged is remembered in `damaged.json` beside the model's manifest, and the next deploy fetches those files
anew. Nobody is stopped: a server serves on with what it has read. Standard library only, as it runs on the node.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moehost.files import write_json
from moehost.progress import Progress
from moehost.store import Shelf, read_damage, read_manifest, verify

MODULES = ("__init__", "source", "files", "store", "progress", "inspection")
FIX = "the next deploy fetches what is damaged anew"


def models(store: Path) -> list[str]:
    """Names of the folders in the store that have a manifest."""
    return sorted(path.parent.name for path in store.glob("[!.]*/manifest.json"))


def catalogue(store: Path) -> list[dict[str, Any]]:
    """The models in the store: what each manifest says of them, and what is known to be wrong (`problem` or None)."""
    found = []
    for name in models(store):
        entry: dict[str, Any] = {"model": name, "source": None, "files": 0, "bytes": 0, "problem": None}
        try:
            manifest = read_manifest(store / name)
        except (OSError, ValueError) as error:
            found.append({**entry, "problem": f"manifest.json can't be read ({error})"})
            continue
        sizes = [file.size_bytes for file in manifest.files]
        entry |= {"source": manifest.source, "revision": manifest.revision, "files": len(sizes), "bytes": sum(sizes)}
        if damaged := read_damage(store / name):
            entry["problem"] = f"damaged: {', '.join(damaged)}"
        elif not Shelf(store, name).manifest():
            entry["problem"] = "a file is gone, or has another size"
        found.append(entry)
    return found


def inspect(store: Path, name: str, progress: Progress, before_bytes: int) -> dict[str, Any]:
    """Read a model, remember what is damaged, and say it: `model`, `bytes`, `seconds`, `damaged` (a line each)."""
    folder = store / name
    while True:
        began_s, identity = time.monotonic(), _identity(folder)
        try:
            size_bytes = sum(file.size_bytes for file in read_manifest(folder).files)
            # Each inspection reads the disk, and leaves the memory to those who serve.
            found = list(verify(folder, progress.counter("verify", before_bytes), uncached=True))
        except (OSError, ValueError) as error:
            says = [f"{folder}/manifest.json: can't be read ({_line(error)})"]
            return {"model": name, "bytes": 0, "seconds": 0.0, "damaged": says}
        # Meanwhile a deploy may have put another model here: then what was read is of no interest.
        if _identity(folder) == identity:
            break
    path = folder / "damaged.json"
    if found:
        seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # In one line: others read it with grep.
        write_json(path, {"seen": seen, "files": {each.path.name: each.sha256 for each in found}})
    else:
        path.unlink(missing_ok=True)
    seconds = round(time.monotonic() - began_s, 1)
    return {"model": name, "bytes": size_bytes, "seconds": seconds, "damaged": [each.says for each in found]}


def _identity(folder: Path) -> int:
    try:
        return folder.stat().st_ino
    except OSError:
        return 0


def _line(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m moehost.inspection", description=__doc__.partition("\n")[0])
    parser.add_argument("store", type=Path, metavar="STORE", help="the model store")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="name of one model; all if not given")
    parser.add_argument("--list", action="store_true", help="print the models as JSON, and read none")
    parser.add_argument("--folder", type=Path, help="folder for progress.json and result.json")
    given = parser.parse_args(arguments)
    if given.list:
        print(json.dumps(catalogue(given.store)))
        return 0
    there = models(given.store)
    if given.model and given.model not in there:
        says = f"{given.store}/{given.model}: is no model; there are: {', '.join(there) or 'none'}"
        print(f"error: {says}", file=sys.stderr)
        return 2
    # systemd makes a folder for a unit's state below /run.
    folder = given.folder or Path(os.environ.get("RUNTIME_DIRECTORY", "/run"))
    progress, results, before_bytes = Progress(folder / "progress.json"), [], 0
    wanted = [given.model] if given.model else there
    progress.total_bytes = sum(each["bytes"] for each in catalogue(given.store) if each["model"] in wanted)
    for name in wanted:
        result = inspect(given.store, name, progress, before_bytes)
        results.append(result)
        before_bytes += result["bytes"]
        for line in result["damaged"]:
            print(f"{line}; {FIX}", file=sys.stderr, flush=True)
        if not result["damaged"]:
            print(f"{name}: as its manifest says, {result['bytes'] / 1e9:.2f} GB", flush=True)
    write_json(folder / "result.json", results, durable=False)
    return int(any(result["damaged"] for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
