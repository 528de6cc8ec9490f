"""What telemetry is asked for, and what it remembers from one time to the next. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moehost import files, xid_log
from moehost.exposition import Sample
from moehost.scrape import Told


@dataclass(frozen=True)
class Service:
    """A service: its unit, and where its server listens."""

    name: str
    unit: str
    host: str
    port: int


@dataclass(frozen=True)
class Job:
    """What is looked at.

    + cards: how many should answer; 0 where none is looked for
    + output: the file for the collector; what is remembered stands beside it
    + interval_s: how often it is looked
    + root: what all other paths are below, for tests
    """

    services: tuple[Service, ...]
    cards: int
    models_dir: str
    output: str
    interval_s: int
    root: str = "/"

    @property
    def limit_s(self) -> float:
        """How long a server may take to tell its figures: it is over before the next time."""
        return self.interval_s * 0.8

    def to_json(self) -> str:
        """As the node gets it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job in a file."""
        data = json.loads(text)
        return cls(**{**data, "services": tuple(Service(**each) for each in data["services"])})


@dataclass
class Known:
    """What is known of a service's process.

    + started: its start in systemd's words
    + counters: what it counted when it told last
    """

    started: str = ""
    is_ready: bool = False
    has_told: bool = False
    duration_s: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def learn(self, told: Told, duration_s: float) -> None:
        """Takes in an answer; what a server counted stands until it tells again."""
        self.has_told, self.duration_s, self.gauges = bool(told.counters), round(duration_s, 3), told.gauges
        self.counters = told.counters or self.counters

    def samples(self, service: str) -> Iterator[Sample]:
        """Its figures."""
        labels = {"service": service}
        yield Sample("moehost_service_ready", self.is_ready, labels)
        yield Sample("moehost_scrape_success", self.has_told, labels)
        yield Sample("moehost_scrape_duration_seconds", self.duration_s, labels)
        for metric, value in {**self.counters, **self.gauges}.items():
            yield Sample(metric, value, labels)


class Memory:
    """What is kept in a file; one that can't be read is nothing that is remembered.

    + xids: lines of the kernel's log, until `xids_until_s`
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._services: dict[str, Known] = {}
        self.xids: list[xid_log.Line] = []
        self.xids_until_s = 0.0
        try:
            data = json.loads(path.read_text())
            services = {name: Known(**each) for name, each in data["services"].items()}
            xids, until_s = [xid_log.Line(*each) for each in data["xids"]], float(data["xids_until_s"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        self._services, self.xids, self.xids_until_s = services, xids, until_s

    def of(self, service: str, started: str) -> Known:
        """What is known of a service's process; nothing where the last one known was another."""
        if service not in self._services or self._services[service].started != started:
            self._services[service] = Known(started)
        return self._services[service]

    def keep(self, services: Iterable[str]) -> None:
        """Write it down, for these services."""
        data = {
            "services": {each: asdict(self._services[each]) for each in services},
            "xids": [[each.number, each.bus, each.text, each.time_s] for each in self.xids],
            "xids_until_s": self.xids_until_s,
        }
        files.write_json(self._path, data, durable=False)
