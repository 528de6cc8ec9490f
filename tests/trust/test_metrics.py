"""A node that is watched: a real exporter and a real Prometheus, asked by its API."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from moehost.figures import CARDS, KINDS, OF_SOME_ENGINES
from tests.fixtures.firewalled import GUARD
from tests.fixtures.gateway_client import PORT
from tests.fixtures.neighbour import Neighbour
from tests.fixtures.node import ROOT, Node, changes
from tests.fixtures.waiting import until

EXPORTER, PROMETHEUS = "127.0.0.1:9100", "127.0.0.1:9090"
RULES = yaml.safe_load((ROOT / "templates/metrics/rules.yml").read_text())
DASHBOARD = json.loads((ROOT / "templates/metrics/dashboard.json").read_text())
# Not on this node: it has no card, nothing waits for a reboot; llama.cpp does not tell everything.
LACKING = {
    *CARDS,
    *(set(OF_SOME_ENGINES) & {"moehost_kv_cache_usage_ratio"}),
    "moehost_reboot_required_time_seconds",
}
MEMORY = "moehost_service_memory_bytes"
# Rates need work within five minutes; what fires is none of a node that is well.
OF_WORK = {"moehost:decode_tokens_per_second", "moehost:prompt_tokens_per_second", "ALERTS"}
UNITS = ("prometheus-node-exporter.service", "moehost-telemetry.service", "moehost-prometheus.service")


def ask(node: Node, path: str) -> Any:
    """What Prometheus' API answers."""
    answer = json.loads(node.run(f"curl --silent --max-time 20 'http://{PROMETHEUS}/api/v1/{path}'"))
    assert answer["status"] == "success", answer
    return answer["data"]


def query(node: Node, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression, now."""
    found: list[dict[str, Any]] = ask(node, f"query?query={quote(expression)}")["result"]
    return found


def absent(node: Node) -> set[str]:
    """What this node can't tell; control groups of version 1 count no memory of a unit's."""
    counts_memory = node.run(f"systemctl show --property MemoryCurrent --value {node.unit}").isdigit()
    return LACKING if counts_memory else LACKING | {MEMORY}


def expressions() -> list[str]:
    """All expressions of rules and dashboard, as Prometheus gets them."""
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    shown = [each.replace("$instance", ".*").replace("$service", ".*") for each in shown]
    return [rule["expr"] for group in RULES["groups"] for rule in group["rules"]] + shown


@pytest.fixture(scope="module")
def watched(node: Node) -> Node:
    """The node once Prometheus has looked at it, and its rules have been evaluated."""
    until(lambda: query(node, "moehost_scrape_success == 1"), 90)
    return node


def test_the_target_is_up_and_is_called_by_the_nodes_name(watched: Node) -> None:
    (target,) = until(
        lambda: [each for each in ask(watched, "targets")["activeTargets"] if each["health"] != "unknown"], 90
    )
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"] == {"instance": watched.run("uname -n"), "job": "moehost"}


def test_all_rules_are_loaded_and_evaluated_without_an_error(watched: Node) -> None:
    wanted = [rule.get("alert") or rule["record"] for group in RULES["groups"] for rule in group["rules"]]

    def loaded() -> list[dict[str, Any]]:
        return [rule for group in ask(watched, "rules")["groups"] for rule in group["rules"]]

    assert sorted(rule["name"] for rule in loaded()) == sorted(wanted)
    until(lambda: not [rule for rule in loaded() if rule["health"] == "unknown"], 150)
    assert [(rule["name"], rule["lastError"]) for rule in loaded() if rule["health"] != "ok"] == []


def test_every_name_in_rules_and_dashboard_is_told_or_needs_what_this_node_lacks(watched: Node) -> None:
    told = set(ask(watched, "label/__name__/values"))
    names = r"\b(?:moehost[:_]\w+|node_\w+|up|ALERTS)\b"
    named = {name for text in expressions() for name in re.findall(names, text)}
    assert "node_textfile_mtime_seconds" in named and "moehost_unit_state" in named
    lacking = absent(watched)
    assert named - told - lacking - OF_WORK == set()
    # The list of what is absent holds nothing that is there.
    assert told & lacking == set()
    assert set(KINDS) - told == lacking


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_is_evaluated(watched: Node, expression: str) -> None:
    query(watched, expression)


def test_the_rules_hold_and_each_alert_fires_and_does_not(watched: Node) -> None:
    """By promtool of the node."""
    watched.run("mkdir -p /tmp/rules && cp /etc/moehost/metrics/rules.yml /tmp/rules/")
    for path in sorted((ROOT / "tests/fixtures/rules").glob("*_test.yml")):
        subprocess.run(["podman", "cp", str(path), f"{watched.name}:/tmp/rules/"], check=True, capture_output=True)
    assert "SUCCESS" in watched.run("promtool check config /etc/moehost/metrics/prometheus.yml 2>&1")
    watched.run("promtool check rules --lint-fatal /tmp/rules/rules.yml")
    watched.run("cd /tmp/rules && promtool test rules *_test.yml")
    # A test that can't fail is none: with another threshold it does.
    watched.run("sed -i 's/>= 88/>= 99/' /tmp/rules/rules.yml")
    watched.run("cd /tmp/rules && ! promtool test rules alerts_test.yml >/dev/null 2>&1")


def test_what_is_told_is_well_formed(watched: Node) -> None:
    watched.run("promtool check metrics </run/moehost-telemetry/moehost.prom")
    golden = ROOT / "tests/fixtures/telemetry/moehost.prom"
    subprocess.run(["podman", "cp", str(golden), f"{watched.name}:/tmp/golden.prom"], check=True, capture_output=True)
    watched.run("promtool check metrics </tmp/golden.prom")
    (error,) = query(watched, "node_textfile_scrape_error")
    assert error["value"][1] == "0"


def test_another_collector_of_textfiles_is_read_still(watched: Node) -> None:
    path = "/var/lib/prometheus/node-exporter/other.prom"
    watched.run(f"echo 'another_collectors_figure 7' >{path}")
    assert (
        watched.run(f"curl -s {EXPORTER}/metrics | grep ^another_collectors_figure") == "another_collectors_figure 7"
    )
    watched.run(f"rm {path}")


def test_counters_are_the_servers_own(watched: Node) -> None:
    service = watched.settings["services"][0]["name"]
    before = watched.run("grep ^moehost_predicted_tokens_total /run/moehost-telemetry/moehost.prom").split()[1]
    watched.run(
        f"key=$(cat /etc/moehost/{service}/api-keys); curl -s --fail 127.0.0.1:8080/completion "
        '-H "Authorization: Bearer $key" -d \'{"prompt": "a", "n_predict": 20, "ignore_eos": true}\' >/dev/null'
    )
    watched.run("systemctl start moehost-telemetry.service")
    after = watched.run("grep ^moehost_predicted_tokens_total /run/moehost-telemetry/moehost.prom").split()[1]
    assert float(after) - float(before) == pytest.approx(20, abs=1)


def test_only_loopback_listens(watched: Node, address: str, outside: Neighbour) -> None:
    listening = [line.split()[3] for line in watched.run("ss -Hltn").splitlines()]
    assert {EXPORTER, PROMETHEUS} <= set(listening)
    # But for the gateway.
    assert {each for each in listening if not each.startswith("127.0.0.1:")} <= {f"0.0.0.0:{PORT}", f"*:{PORT}"}
    for port in (9100, 9090):
        assert outside.run("curl", "--silent", "--max-time", "3", f"http://{address}:{port}/").returncode != 0


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_sandboxed(watched: Node, unit: str) -> None:
    watched.run(f"systemd-analyze security --offline=yes --threshold=20 {unit} >/dev/null")
    assert watched.run(f"systemd-analyze verify --man=no --recursive-errors=no {unit} 2>&1 || true") == ""


def test_no_key_is_seen(watched: Node) -> None:
    service = watched.settings["services"][0]["name"]
    key = watched.run(f"cat /etc/moehost/{service}/api-keys")
    assert len(key) > 20
    # The search itself holds the key: it comes over standard input.
    folders = "/run/moehost-telemetry /etc/moehost/metrics /etc/systemd/system"
    look = f"grep -rlFf /tmp/key {folders}; journalctl --no-pager | grep -cFf /tmp/key; ps axeww | grep -cFf /tmp/key"
    done = subprocess.run(
        ["podman", "exec", "-i", watched.name, "sh", "-c", f"cat >/tmp/key; {look}; rm /tmp/key"],
        input=key,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "0"]
    assert key not in watched.run(f"curl -s {EXPORTER}/metrics; curl -s {PROMETHEUS}/api/v1/status/config")


def test_the_account_reads_no_key(watched: Node) -> None:
    service = watched.settings["services"][0]["name"]
    watched.run(f"! setpriv --reuid=moehost-telemetry --clear-groups cat /etc/moehost/{service}/api-keys 2>/dev/null")


def test_a_second_deploy_changes_nothing(watched: Node) -> None:
    assert changes(watched.deploy()) == []


def test_a_deploy_mends_what_was_stopped_and_changed(watched: Node) -> None:
    watched.run("systemctl stop moehost-prometheus moehost-telemetry.timer prometheus-node-exporter")
    watched.run("echo '# edited' >>/etc/moehost/metrics/rules.yml; rm /var/lib/prometheus/node-exporter/moehost.prom")
    assert len(changes(watched.deploy())) == 2
    watched.run("systemctl is-active moehost-prometheus moehost-telemetry.timer prometheus-node-exporter")
    assert changes(watched.deploy()) == []


def test_a_port_that_is_taken_is_refused_before_anything_is_touched(watched: Node) -> None:
    settings = copy.deepcopy(watched.settings)
    settings["metrics"]["prometheus_port"] = 9095
    watched.run("systemd-run --quiet --unit=somebody python3 -m http.server 9095 --bind 127.0.0.1")
    try:
        until(lambda: watched.run("ss -Hltn sport = :9095"), 90)
        deploy = watched.deploy(settings)
        assert deploy.returncode == 1
        assert re.search(
            r"metrics.prometheus_port: 9095 is taken by python3 \(pid \d+\); choose another", deploy.stderr
        )
    finally:
        watched.run("systemctl stop somebody")
    # The packet filter had guarded that port already.
    assert changes(watched.deploy()) == GUARD


@pytest.fixture
def stopped(watched: Node) -> Iterator[None]:
    """The service is stopped by a person; afterwards it serves again."""
    watched.run(f"systemctl stop {watched.unit}")
    yield
    watched.run(f"systemctl start {watched.unit}; systemctl start moehost-telemetry.service")


def test_a_service_that_is_stopped_is_an_alert(watched: Node, stopped: None) -> None:
    watched.run("systemctl start moehost-telemetry.service")
    alert = until(
        lambda: [
            each
            for each in ask(watched, "alerts")["alerts"]
            if each["labels"]["alertname"] == "MoehostServiceNotReady"
        ],
        200,
    )[0]
    # It fires after five minutes; promtool's tests have that.
    assert alert["state"] in ("pending", "firing")
    assert alert["labels"]["service"] == watched.settings["services"][0]["name"]
    assert alert["annotations"]["runbook"] == "docs/runbooks/MoehostServiceNotReady.md"


def test_taken_out_of_the_settings_it_is_away_and_comes_again(watched: Node) -> None:
    where = (
        "/etc/moehost/metrics /run/moehost-telemetry /var/lib/prometheus /etc/systemd/system /usr/local/lib/moehost"
    )
    files = f"find {where} -name '*prom*' -o -name '*telemetry*'"
    without = {key: value for key, value in watched.settings.items() if key != "metrics"}
    before = watched.process
    gone = [*GUARD, "Metrics | Take away the exporter, the figures and Prometheus"]
    assert changes(watched.deploy(without)) == gone
    assert watched.run(f"{files} 2>/dev/null || true") == ""
    assert watched.run("ss -Hltn 'sport = :9100 or sport = :9090'") == ""
    assert (
        watched.run("dpkg-query -W -f '${Package} ${db:Status-Status}\n' 'prometheus*' | grep ' installed$' || true")
        == ""
    )
    assert watched.run("getent passwd moehost-telemetry || true") == ""
    assert (
        watched.run(
            "systemctl --failed --plain --no-legend; systemctl list-units --all --plain --no-legend 'moehost-[mpt]*'"
        )
        == ""
    )
    assert changes(watched.deploy(without)) == []
    # Without Prometheus the exporter stays alone.
    alone = copy.deepcopy(watched.settings)
    alone["metrics"]["prometheus"] = False
    assert changes(watched.deploy(alone))
    assert watched.run("ss -Hltn 'sport = :9100 or sport = :9090' | awk '{print $4}'") == EXPORTER
    assert changes(watched.deploy(alone)) == []
    assert changes(watched.deploy())
    assert changes(watched.deploy()) == []
    # The service has not noticed any of it.
    assert watched.process == before


def test_an_owners_prometheus_and_exporter_are_left(watched: Node) -> None:
    without = {key: value for key, value in watched.settings.items() if key != "metrics"}
    changes(watched.deploy(without))
    packages = "prometheus prometheus-node-exporter"
    for package, port in zip(packages.split(), (9190, 9191), strict=True):
        watched.run(f"echo 'ARGS=--web.listen-address=127.0.0.1:{port}' >/etc/default/{package}")
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -y -q"
    watched.run(f"{apt} install --no-install-recommends -o Dpkg::Options::=--force-confold {packages}")
    listen = "ss -Hltn 'sport = :9191 or sport = :9190' | wc -l"
    until(lambda: watched.run(listen) == "2", 90)
    pid = watched.run("systemctl show -p MainPID --value prometheus")
    try:
        assert changes(watched.deploy())
        assert changes(watched.deploy()) == []
        assert watched.run("systemctl show -p MainPID --value prometheus") == pid != "0"
        assert watched.run(f"curl -s {PROMETHEUS}/-/ready").startswith("Prometheus")
        assert changes(watched.deploy(without))
        # The exporter is where its owner had it, and his Prometheus has not noticed.
        until(lambda: watched.run(listen) == "2", 90)
        assert watched.run("systemctl show -p MainPID --value prometheus") == pid
    finally:
        watched.run(f"{apt} purge {packages}")
        changes(watched.deploy())


def test_what_is_exported_is_taken_by_promtool(watched: Node, tmp_path: Path) -> None:
    command = ["moehost", "metrics", "export", str(tmp_path / "out"), "--inventory", str(watched.inventory())]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(
        ["podman", "cp", str(tmp_path / "out"), f"{watched.name}:/tmp/exported"], check=True, capture_output=True
    )
    assert "SUCCESS" in watched.run("promtool check config /tmp/exported/prometheus.yml 2>&1; rm -r /tmp/exported")
