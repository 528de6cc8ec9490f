"""Tells how a node is: cards, services, plans, the system, as a file for a node exporter's textfile collector.

    python3 -m moehost.telemetry JOB

Standard library only; the modules in `MODULES` go with it. A file for each service in `$CREDENTIALS_DIRECTORY` has
its keys. Services are asked beside all the rest; what is known is written soon, and once more when the slowest one
has told its figures, or its time is up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moehost import card_log, exposition, files, node_figures, scrape, xid_log
from moehost.exposition import Sample
from moehost.figures import KINDS
from moehost.telemetry_memory import Job, Known, Memory, Service

MODULES = (
    *("__init__", "card_log", "exposition", "figures", "files", "node_figures", "scrape", "server_figures"),
    *("telemetry", "telemetry_memory", "xid_log"),
)
PATTERNS = ("llama-server-*.service", "moehost-*.service", "moehost-*.timer")
# How long services are waited for before the rest is written.
SOON_S = 5.0
# A driver that is stuck keeps nvidia-smi for ever.
PROGRAM_S = 20.0
# The kernel's log is read with a little of what was read before: its lines come late.
OVERLAP_S = 120


def run(job: Job, credentials: Path) -> None:
    """Looks at everything, and writes it: soon, and once more if a service is late."""
    began = time.monotonic()
    questions = {each.name: Question(each, _key(credentials / each.name), job.limit_s) for each in job.services}
    for question in questions.values():
        question.start()
    memory = Memory(Path(job.output).with_suffix(".json"))
    units = node_figures.blocks(_units(job))
    of_node = [*_node(job, units), *_services(job, units), *_cards(job, memory)]
    states = {each["Id"]: each for each in units}
    known = {
        each.name: memory.of(each.name, node_figures.process(states.get(each.unit, {}))) for each in job.services
    }
    for limit_s in (SOON_S, job.limit_s):
        for question in questions.values():
            question.join(max(0.0, began + limit_s - time.monotonic()))
        waits = [each for each, question in questions.items() if question.told is None]
        is_last = limit_s == job.limit_s or not waits
        for name, question in questions.items():
            question.report(known[name], is_last)
        told = [sample for name, each in known.items() for sample in each.samples(name)]
        text = exposition.render([*of_node, *told], KINDS)
        files.replace(Path(job.output), text.encode(), durable=False)
        memory.keep(questions)
        if is_last:
            break
    for name, question in questions.items():
        if problem := question.problem:
            print(f"{name}: {problem}", file=sys.stderr)


class Question(threading.Thread):
    """A service that is being asked. What is still None has not been answered."""

    def __init__(self, service: Service, key: str, limit_s: float) -> None:
        super().__init__(daemon=True)
        self.service, self.key, self.limit_s = service, key, limit_s
        self.is_ready: bool | None = None
        self.told: scrape.Told | None = None
        self.began = self.ended = time.monotonic()

    def run(self) -> None:
        """Asks."""
        where = self.service.host, self.service.port
        self.is_ready = scrape.is_ready(*where, min(scrape.READY_S, self.limit_s / 4))
        told = scrape.Told(problem="does not answer")
        self.began = time.monotonic()
        if self.is_ready:
            told = scrape.figures(*where, self.key, self.limit_s)
        self.ended, self.told = time.monotonic(), told

    def report(self, known: Known, is_last: bool) -> None:
        """Adds what was answered to what is known; `is_last` when no more is waited for."""
        if self.is_ready is not None:
            known.is_ready = self.is_ready
        elif is_last:
            known.is_ready = False
        if self.told:
            known.learn(self.told, self.ended - self.began)
        elif is_last:
            known.learn(scrape.Told(), time.monotonic() - self.began)

    @property
    def problem(self) -> str:
        """Why there are no figures of it, if there are none."""
        return self.told.problem if self.told else "is busy: told no figures in time"


def _key(path: Path) -> str:
    """The first key of a file, which may begin with a comment."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def _output(*command: str) -> str:
    """What a program prints, within its time; nothing where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROGRAM_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _units(job: Job) -> str:
    listed = [
        _output("systemctl", "list-unit-files", "--plain", "--no-legend", *PATTERNS),
        _output("systemctl", "list-units", "--all", "--plain", "--no-legend", *PATTERNS),
    ]
    names = {line.split()[0] for text in listed for line in text.splitlines() if line.strip()}
    # A template is no unit.
    names = {each for each in names if "@." not in each} | {each.unit for each in job.services}
    show = ("systemctl", "show", "--timestamp=unix", f"--property={node_figures.PROPERTIES}")
    return _output(*show, *sorted(names))


def _node(job: Job, units: list[dict[str, str]]) -> Iterator[Sample]:
    root = Path(job.root)
    yield Sample("moehost_telemetry_interval_seconds", job.interval_s)
    yield Sample("moehost_collector_success", bool(units), {"collector": "units"})
    yield from node_figures.units(units)
    try:
        yield from node_figures.reboot((root / "run/reboot-required").stat().st_mtime)
    except OSError:
        yield from node_figures.reboot(None)
    current = root / "opt/moehost/engine/current"
    release = current.readlink().name if current.is_symlink() else ""
    yield from node_figures.engine(release, _json(current / "build.json"))
    try:
        disk = os.statvfs(root / job.models_dir.lstrip("/"))
    except OSError:
        yield Sample("moehost_collector_success", 0, {"collector": "models"})
        return
    yield Sample("moehost_collector_success", 1, {"collector": "models"})
    yield Sample("moehost_models_free_bytes", disk.f_bavail * disk.f_frsize)
    yield Sample("moehost_models_size_bytes", disk.f_blocks * disk.f_frsize)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _services(job: Job, units: list[dict[str, str]]) -> Iterator[Sample]:
    states = {each["Id"]: each for each in units}
    for service in job.services:
        yield from node_figures.service(service.name, states.get(service.unit, {}))
        try:
            text = (Path(job.root) / f"etc/moehost/{service.name}/plan.json").read_text()
            yield from list(node_figures.plan(service.name, text))
        except (OSError, ValueError, KeyError, TypeError):
            yield Sample("moehost_collector_success", 0, {"collector": f"plan of {service.name}"})


def _cards(job: Job, memory: Memory) -> Iterator[Sample]:
    if not job.cards:
        return
    yield Sample("moehost_cards_expected", job.cards)
    text = _output("nvidia-smi", "-q", "-x")
    try:
        cards = card_log.parse(text)
    except ValueError:
        cards = []
    yield Sample("moehost_collector_success", bool(cards), {"collector": "cards"})
    yield Sample("moehost_cards", len(cards))
    yield from node_figures.cards(cards, node_figures.driver(text))
    yield from _xids(memory)


def _xids(memory: Memory) -> Iterator[Sample]:
    now_s = time.time()
    first_s = now_s - node_figures.XID_DAYS * node_figures.DAY_S
    text = _output(
        *("journalctl", "_TRANSPORT=kernel", f"--since=@{int(max(memory.xids_until_s - OVERLAP_S, first_s))}"),
        *("--output=short-unix", "--no-pager", "--quiet", "--grep=NVRM: Xid"),
    )
    # A line that was read before is the same to the last digit.
    lines = dict.fromkeys([*memory.xids, *xid_log.lines(text)])
    memory.xids, memory.xids_until_s = [each for each in lines if (each.time_s or 0) >= first_s], now_s
    yield from node_figures.xids(memory.xids, now_s)


if __name__ == "__main__":
    run(Job.from_json(Path(sys.argv[1]).read_text()), Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")))
    # A server that is still busy keeps its thread, which must not keep this program.
    sys.stderr.flush()
    os._exit(0)
