"""What a watched node has: files by path, packages, and what a process is recognised by."""

import hashlib
import ipaddress
from pathlib import Path

import moehost
from moehost import fetch, rehearse, telemetry
from moehost.settings import Node
from moehost.settings_metrics import Metrics
from moehost.telemetry_memory import Job, Service
from roles.metrics.facts import EXPORTER, FOLDER, PROMETHEUS, TELEMETRY, TIMER
from roles.models.operations import LIBRARY
from roles.operations import TEMPLATES, render

UNITS = "/etc/systemd/system"
OUTPUT = "/run/moehost-telemetry/moehost.prom"
PACKAGES = {EXPORTER: "prometheus-node-exporter", PROMETHEUS: "prometheus"}
DROP_IN = f"{UNITS}/{EXPORTER}.d/50-moehost.conf"
# Modules that others need, too, stay.
_OWN = sorted({*telemetry.MODULES} - {*fetch.MODULES, *rehearse.MODULES})
EVER = [
    *(f"{LIBRARY}/moehost/{each}.py" for each in _OWN),
    *(f"{FOLDER}/{each}" for each in ("telemetry.json", "rules.yml", "dashboard.json", "prometheus.yml")),
    *(f"{UNITS}/{each}" for each in (TIMER, TELEMETRY, PROMETHEUS)),
    *(DROP_IN, "/etc/sysusers.d/moehost-metrics.conf"),
]


def generation(*texts: str) -> str:
    """What a process is recognised by: a hash of all that it reads at its start."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def job(node: Node, wish: Metrics, cards: int) -> Job:
    """What `moehost.telemetry` looks at.

    + cards: how many there are on the bus
    """
    return Job(
        services=tuple(Service(each.name, each.unit, each.url_host, each.port) for each in node.services),
        cards=cards and (node.nvidia.cards or cards),
        models_dir=node.models_dir,
        output=OUTPUT,
        interval_s=wish.interval_s,
    )


def files(node: Node, wish: Metrics, cards: int, host: str) -> dict[str, str]:
    """All files by path, but for the record of packages.

    + cards: how many there are on the bus; 0 where they are left alone
    + host: the node's name, by which the figures are called
    """
    package = Path(moehost.__file__).parent
    hosts = {each.url_host.strip("[]") for each in node.services}
    texts = {f"{LIBRARY}/moehost/{each}.py": (package / f"{each}.py").read_text() for each in telemetry.MODULES}
    texts |= {
        f"{FOLDER}/{each}": (TEMPLATES / f"metrics/{each}").read_text() for each in ("rules.yml", "dashboard.json")
    }
    texts[f"{FOLDER}/telemetry.json"] = job(node, wish, cards).to_json()
    texts["/etc/sysusers.d/moehost-metrics.conf"] = render("metrics/sysusers.conf.j2")
    texts[f"{UNITS}/{TELEMETRY}"] = render(
        "metrics/moehost-telemetry.service.j2",
        library=LIBRARY,
        services=[each.name for each in node.services],
        interval_s=wish.interval_s,
        has_cards=cards > 0,
        addresses=sorted(each for each in hosts if not ipaddress.ip_address(each).is_loopback),
    )
    texts[f"{UNITS}/{TIMER}"] = render("metrics/moehost-telemetry.timer.j2", interval_s=wish.interval_s)
    texts[DROP_IN] = exporter(wish)
    if wish.prometheus:
        texts[f"{FOLDER}/prometheus.yml"] = configuration(wish, host)
        texts[f"{UNITS}/{PROMETHEUS}"] = prometheus(wish, host)
    return texts


def configuration(wish: Metrics, host: str) -> str:
    """The configuration of the node's own Prometheus."""
    nodes = {host: f"127.0.0.1:{wish.port}"}
    return render("metrics/prometheus.yml.j2", interval_s=wish.interval_s, nodes=nodes, comments=[])


def exporter(wish: Metrics) -> str:
    """The drop-in for the exporter's unit."""
    text = render("metrics/exporter.conf.j2", port=wish.port, generation="")
    return render("metrics/exporter.conf.j2", port=wish.port, generation=generation(text))


def prometheus(wish: Metrics, host: str) -> str:
    """The unit of the node's own Prometheus."""
    values = {"port": wish.prometheus_port, "retention": wish.retention}
    unit = render("metrics/moehost-prometheus.service.j2", generation="", **values)
    mark = generation(unit, configuration(wish, host), (TEMPLATES / "metrics/rules.yml").read_text())
    return render("metrics/moehost-prometheus.service.j2", generation=mark, **values)


def generation_of(unit: str) -> str:
    """The generation that a unit's text gives its process."""
    return unit.partition("MOEHOST_GENERATION=")[2].partition("\n")[0]
