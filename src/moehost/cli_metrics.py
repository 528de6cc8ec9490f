"""`moehost metrics`: rules, dashboard and configuration for a Prometheus and a Grafana of the owner's."""

from __future__ import annotations

from pathlib import Path

import click
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from moehost import settings
from moehost.settings_metrics import Metrics
from moehost.terminal import host_of, hosts, say, stop

TEMPLATES = Path(__file__).parents[2] / "templates/metrics"
# First port of the ways to nodes, whose exporters listen on loopback only.
TUNNEL = 19100


@click.group()
def metrics() -> None:
    """What a Prometheus and a Grafana of yours need; docs/metrics.md."""


@metrics.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--inventory", default="inventory", show_default=True, help="Whose nodes are looked at.")
def export(folder: Path, inventory: str) -> None:
    """Write prometheus.yml (an example), rules.yml and dashboard.json into DIR.

    The example has a target for each node of the inventory that has `metrics`. Exporters listen on loopback: the
    file names the tunnel that each target needs.

    \b
    Example:
        moehost metrics export monitoring
        promtool check config monitoring/prometheus.yml
    """
    watched = _watched(inventory)
    nodes, comments = {}, []
    for port, (host, wish) in enumerate(watched.items(), TUNNEL):
        nodes[host_of(host)] = f"127.0.0.1:{port}"
        way = f"ssh -N -L 127.0.0.1:{port}:127.0.0.1:{wish.port} {host}"
        comments.append(f"{host}: {'no way in by SSH' if host.startswith('@') else way}")
    interval_s = min((wish.interval_s for wish in watched.values()), default=60)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  (YAML, no HTML)
    )
    template = environment.get_template("prometheus.yml.j2")
    folder.mkdir(parents=True, exist_ok=True)
    text = template.render(interval_s=interval_s, nodes=nodes or {"NODE": f"127.0.0.1:{TUNNEL}"}, comments=comments)
    (folder / "prometheus.yml").write_text(text, encoding="utf-8")
    for each in ("rules.yml", "dashboard.json"):
        (folder / each).write_text((TEMPLATES / each).read_text(encoding="utf-8"), encoding="utf-8")
    say(f"prometheus.yml with {len(nodes)} node(s), rules.yml and dashboard.json are in {folder}")


def _watched(inventory: str) -> dict[str, Metrics]:
    found = {}
    for host, data in hosts(inventory).items():
        try:
            wish = settings.read(data).metrics
        except settings.SettingsError as error:
            stop(*(f"{host}: {line}" for line in error.lines))
        if wish:
            found[host] = wish
    return found
