"""Rules, dashboard and runbooks belong together, and name only what is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from moehost.cli import main
from moehost.doctor.xid import MEANINGS
from moehost.figures import KINDS

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "templates/metrics/rules.yml").read_text())
DASHBOARD = json.loads((ROOT / "templates/metrics/dashboard.json").read_text())
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs/runbooks").glob("*.md") if path.stem != "README"}
TESTS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests/fixtures/rules").glob("*_test.yml"))]


def rules(key: str) -> list[dict[str, Any]]:
    """All rules that have this key: `alert` or `record`."""
    return [rule for group in RULES["groups"] for rule in group["rules"] if key in rule]


ALERTS = {rule["alert"] for rule in rules("alert")}
RECORDS = {rule["record"] for rule in rules("record")}


def panels() -> list[dict[str, Any]]:
    """The panels that show something."""
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def expressions() -> list[str]:
    """All expressions of rules and dashboard."""
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in rules("expr")] + shown


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert set(PAGES) == ALERTS
    index = re.findall(r"\[(\w+)\]\(\1\.md\)", (ROOT / "docs/runbooks/README.md").read_text())
    assert sorted(index) == sorted(ALERTS)


def test_every_alert_says_how_bad_it_is_and_where_its_page_is() -> None:
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{rule['alert']}.md"
        assert "$labels.instance" in rule["annotations"]["summary"]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_says_what_it_means_where_to_look_how_to_mend_and_how_to_be_sure(page: str) -> None:
    text = PAGES[page]
    assert text.startswith(f"# {page}\n\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Look", "Mend", "Be sure"]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / "docs/runbooks" / link).is_file(), link


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_names_commands_that_there_are(page: str) -> None:
    for words in re.findall(r"\bmoehost ((?:[a-z-]+ ?)+)", PAGES[page]):
        command: Any = main
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            command = command.commands.get(word)
            assert command, words


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_every_alert_is_tested_to_fire_and_not_to(alert: str) -> None:
    found = [
        each["exp_alerts"]
        for tests in TESTS
        for test in tests["tests"]
        for each in test.get("alert_rule_test", [])
        if each["alertname"] == alert
    ]
    assert any(found)
    assert not all(found)


def test_expressions_name_only_what_is_told() -> None:
    named = {name for text in expressions() for name in re.findall(r"\bmoehost[:_]\w+", text)}
    assert named - set(KINDS) - RECORDS == set()


def test_a_grave_xid_is_what_the_doctor_calls_an_error() -> None:
    (grave,) = (
        rule["expr"]
        for rule in rules("alert")
        if rule["alert"] == "MoehostXid" and rule["labels"]["severity"] == "critical"
    )
    errors = {number for number, meaning in MEANINGS.items() if meaning.level == "error"}
    # What 154 asks for may be a reboot.
    assert {int(each) for each in re.findall(r"\d+", grave.partition("=~")[2].partition("}")[0])} == errors | {154}


def test_the_dashboard_is_whole() -> None:
    assert len({each["id"] for each in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"] and panel["targets"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_export_writes_what_a_prometheus_and_a_grafana_need(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.py"
    watched = {"metrics": {"port": 9200, "interval_s": 30}}
    inventory.write_text(f"nodes = [('epyc.home.arpa', {watched!r}), ('other.home.arpa', {{}})]\n")
    done = CliRunner().invoke(main, ["metrics", "export", str(tmp_path / "out"), "--inventory", str(inventory)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out/prometheus.yml").read_text()
    data = yaml.safe_load(text)
    assert data["global"]["scrape_interval"] == "30s"
    (job,) = data["scrape_configs"]
    assert job["job_name"] == "moehost"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:19100"], "labels": {"instance": "epyc.home.arpa"}}]
    assert "# epyc.home.arpa: ssh -N -L 127.0.0.1:19100:127.0.0.1:9200 epyc.home.arpa\n" in text
    for each in ("rules.yml", "dashboard.json"):
        assert (tmp_path / "out" / each).read_text() == (ROOT / "templates/metrics" / each).read_text()


def test_export_names_wrong_settings(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.py"
    inventory.write_text("nodes = [('epyc.home.arpa', {'metrics': {'prot': 1}})]\n")
    done = CliRunner().invoke(main, ["metrics", "export", str(tmp_path / "out"), "--inventory", str(inventory)])
    assert done.exit_code == 2
    assert "metrics.prot: unknown setting; did you mean 'port'?" in done.output
