"""`moehost measure` on a node: what stays is measured.json, and the planner reads it."""

import json
import subprocess
import time

import pytest

from tests.fixtures.node import ROOT

KEPT = "/etc/moehost/measured.json"
LIMIT_S = 60


@pytest.fixture(scope="module")
def measured(node):
    """Measured with a compiler that is installed if need be; what the node keeps is removed again."""
    inventory = str(node.inventory())
    host = f"@podman/{node.name}"
    command = ["moehost", "measure", host, "--inventory", inventory, "--disk-seconds", "1", "--json"]
    installed = subprocess.run([*command, "--install-compiler"], cwd=ROOT, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        yield node, done, time.monotonic() - began
    finally:
        node.run(f"rm -f {KEPT}")


def test_a_node_is_measured_within_a_minute(measured):
    _, done, took_s = measured
    assert done.returncode == 0, done.stderr
    assert took_s < LIMIT_S


def test_what_is_said_is_what_is_kept(measured):
    node, done, _ = measured
    assert json.loads(node.run(f"cat {KEPT}")) == json.loads(done.stdout)
    assert node.run(f"stat -c '%a %U' {KEPT}") == "644 root"


def test_memory_and_the_models_disk_were_measured(measured):
    _, done, _ = measured
    found = json.loads(done.stdout)
    assert 0 < found["memory"]["read_gb_s"]["median"] <= found["memory"]["read_gb_s"]["best"]
    assert found["disk"]["path"].endswith(".gguf")
    assert found["disk"]["read_gb_s"] > 0
    assert "cards" not in found


def test_the_running_server_is_named(measured):
    _, done, _ = measured
    assert len(json.loads(done.stdout)["servers_running"]) == 1
    assert "llama-server ran meanwhile" in done.stderr


def test_nothing_else_stays(measured):
    node, _, _ = measured
    assert "moehost-measure" not in node.run("ls /var/tmp")
