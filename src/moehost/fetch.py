"""Brings one model into the store, or checks one that is there: the program that a node runs.

    python3 -m moehost.fetch JOB.json       0: the model stands in the store; 1: it does not; 2: bad input
    python3 -m moehost.fetch --verify DIR   0: all as the manifest says; 1: one line for each file that is not

Python >= 3.11 with its standard library and aria2 are all it needs; the modules in `MODULES` go with it.
A run continues what an earlier one has left, and ends without asking anybody when there is nothing to do.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moehost import download, files, gguf, store
from moehost import source as sources
from moehost.job import Job
from moehost.progress import Progress
from moehost.source import FileSource, HttpSource, HubSource, ModelFile
from moehost.store import Manifest, Shelf, StoreError, read_damage

MODULES = ("__init__", "gguf", "source", "job", "files", "store", "progress", "download", "fetch")

EXAMPLES = """\
examples:
  python3 -m moehost.fetch job.json
  python3 -m moehost.fetch --verify /srv/models/Qwen3.5-397B-A17B-IQ4_NL

a job (model, store and source are required, the rest shows the defaults):
  {"model": "Qwen3.5-397B-A17B-IQ4_NL", "store": "/srv/models",
   "source": "hf://OWNER/REPO/IQ4_NL@<40 hex digits of the commit>", "revision": null,
   "sha256": {}, "token_file": null, "connections": 8, "reserve_mib": 1024,
   "uploaded": false, "recorded_source": null}

exit status: 0 as wanted, 1 not (with one line that says why), 2 bad input
"""


@dataclass(frozen=True)
class Order:
    """One file to bring and where it comes from: a path on this machine, or an address."""

    file: ModelFile
    origin: Path | str

    def to_json(self) -> list[Any]:
        """What tells this order from a later one: the file, and when it last changed if it is local."""
        changed_ns = self.origin.stat().st_mtime_ns if isinstance(self.origin, Path) else None
        return [self.file.name, self.file.size_bytes, self.file.sha256, changed_ns]


def plan(job: Job, token: str | None) -> list[Order]:
    """Asks the source which files the model has; raises StoreError, ValueError or OSError."""
    origins: list[Path | str]
    match job.where:
        case FileSource(folder, names):
            origins = [Path(folder) / name for name in names]
            found = [ModelFile(name, (Path(folder) / name).stat().st_size, None) for name in names]
        case HttpSource(names=names) as web:
            origins = [web.url(name) for name in names]
            found = [ModelFile(name, download.locate(web.url(name), None)[1], None) for name in names]
        case HubSource() as hub:
            found = list(sources.hub_files(hub, download.tree(hub.tree_url(job.endpoint), token)))
            origins = [hub.resolve_url(job.endpoint, file.name) for file in found]
    pinned = sources.pin(found, job.sha256)
    unknown = [file.name for file in pinned if file.sha256 is None]
    if unknown and isinstance(job.where, HubSource):
        raise StoreError(f"{job.source}: the hub states no sha256 of {unknown[0]}; add it to the job's sha256")
    return [Order(file, origin) for file, origin in zip(pinned, origins, strict=True)]


def run(job: Job) -> None:
    """Makes a model stand in the store; after StoreError, ValueError or OSError the old one still stands."""
    shelf = Shelf(Path(job.store), job.model)
    with shelf.locked(on_wait=lambda: _say(f"{job.model}: waiting for another run that is at work on it")) as lock:
        progress = Progress(shelf.progress)
        try:
            progress.show("download", 0)
            shelf.recover()
            model = shelf.manifest()
            if model is None or not _is_asked(model, shelf, job):
                model = _replace(shelf, job, lock, progress)
            shelf.clear()
            if job.uploaded:
                for path in _local_files(job):
                    path.unlink(missing_ok=True)
            progress.total_bytes = sum(file.size_bytes for file in model.files)
            progress.show("done", progress.total_bytes)
        except BaseException as error:
            progress.fail(_line(error))
            raise


def _local_files(job: Job) -> list[Path]:
    source = job.where
    return [Path(source.folder) / name for name in source.names] if isinstance(source, FileSource) else []


def _is_asked(model: Manifest, shelf: Shelf, job: Job) -> bool:
    """Whether a model is what the job would bring; a local origin may be gone by now, but not changed."""
    origins = [path for path in _local_files(job) if path.exists()]
    return model.answers(job.label, job.revision, job.sha256) and all(
        files.alike(path, shelf.target / path.name) for path in origins
    )


def _replace(shelf: Shelf, job: Job, lock: int, progress: Progress) -> Manifest:
    token = _token(job)
    orders = plan(job, token)
    progress.total_bytes = sum(order.file.size_bytes for order in orders)
    wanted = [order.to_json() for order in orders]
    shelf.stage({"source": job.label, "revision": job.revision, "files": wanted})
    _adopt(shelf, orders)
    shelf.require_space(sum(shelf.missing_bytes(order.file) for order in orders), job.reserve_mib)
    downloader = download.Downloader(token, job.connections, lock)
    brought: list[ModelFile] = []
    headers: list[gguf.Header] = []
    for number, order in enumerate(orders, start=1):
        before_bytes = sum(file.size_bytes for file in brought)
        brought.append(_bring(shelf, order, downloader, progress, before_bytes))
        # Read at once, so that an address that never led to a model costs one file and not the whole set.
        headers.append(gguf.read_file(shelf.finished(order.file)))
        _say(f"{order.file.name}: verified ({number} of {len(orders)})")
    model = gguf.join(headers)
    progress.show("switch", progress.total_bytes)
    architecture = str(model.metadata.get("general.architecture", "unknown"))
    manifest = Manifest(job.model, job.label, job.revision, tuple(brought), architecture, len(model.tensors))
    shelf.seal(manifest, [header.to_json() for header in headers])
    shelf.switch()
    return manifest


def _adopt(shelf: Shelf, orders: Sequence[Order]) -> None:
    """Links whatever lies on the store's disk already: local origins, and files of the model that stands."""
    held, damaged = shelf.held(), read_damage(shelf.target)
    for order in orders:
        if isinstance(order.origin, Path):
            stored = shelf.target / order.file.name
            if order.file.name in damaged and stored.exists() and stored.samefile(order.origin):
                raise StoreError(
                    f"{order.origin}: is the damaged file itself, by another name; put a good copy there"
                )
            shelf.adopt(order.file, order.origin)
        elif order.file.sha256 in held and not shelf.part(order.file).exists():
            shelf.adopt(order.file, held[order.file.sha256])


def _bring(
    shelf: Shelf, order: Order, downloader: download.Downloader, progress: Progress, before_bytes: int
) -> ModelFile:
    """Gets one file to where it waits for the switch, verified; returns it with its sha256."""
    file, part, finished = order.file, shelf.part(order.file), shelf.finished(order.file)
    on_fetched, on_hashed = (progress.counter(phase, before_bytes) for phase in ("download", "verify"))
    if finished.exists():
        return replace(file, sha256=file.sha256 or files.sha256_of(finished, on_hashed))
    resumed = part.exists() and not isinstance(order.origin, Path)
    while True:
        if not shelf.is_filled(file):
            if isinstance(order.origin, Path):
                files.copy(order.origin, part, on_fetched)
            else:
                downloader.fetch(order.origin, part, file.size_bytes, on_fetched)
        found = files.sha256_of(part, on_hashed)
        if file.sha256 in (None, found):
            break
        files.discard(part)
        if not resumed:
            raise StoreError(f"{order.origin}: its sha256 is {found}, not {file.sha256}; correct one of the two")
        # A power cut can cost bytes that counted as there: only an uninterrupted try condemns the source.
        resumed = False
    shelf.accept(file)
    return replace(file, sha256=found)


def _token(job: Job) -> str | None:
    """The secret for the hub; None without a token file or for other sources."""
    if job.token_file is None or not isinstance(job.where, HubSource):
        return None
    token = Path(job.token_file).read_text().strip()
    if not re.fullmatch("[!-~]+", token):
        raise StoreError(f"{job.token_file}: does not hold one token and nothing else; write it anew")
    return token


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _line(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run again to continue"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the store'}: {error.strerror}; mend it and run again to continue"
    return " ".join(str(error).split()) or repr(error)


def _fail(text: str, status: int) -> int:
    _say(f"error: {text}")
    return status


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        usage="python3 -m moehost.fetch (JOB.json | --verify DIR)",
        description="Brings one model into the store, or checks one that is there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("job", nargs="?", type=Path, metavar="JOB.json", help="what to bring where")
    asked.add_argument("--verify", type=Path, metavar="DIR", help="hash a model's files again and compare")
    given = parser.parse_args(arguments)
    if given.verify:
        return _verify(given.verify)
    try:
        job = Job.parse(given.job.read_text())
    except ValueError as error:
        return _fail(f"{given.job}: {error}", 2)
    except OSError as error:
        return _fail(_line(error), 2)
    try:
        run(job)
    except (StoreError, ValueError, OSError) as error:
        return _fail(_line(error), 1)
    except KeyboardInterrupt as error:
        return _fail(_line(error), 130)
    return 0


def _verify(folder: Path) -> int:
    try:
        bad = 0
        for damage in store.verify(folder):
            print(damage.says, flush=True)
            bad = 1
        return bad
    except (OSError, ValueError) as error:
        return _fail(f"{folder}: has no manifest that can be read ({_line(error)}); name the folder of a model", 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
