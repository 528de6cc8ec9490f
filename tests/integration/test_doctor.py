"""`moehost doctor` asks a node that is well, and one whose service is down."""

import json
import subprocess

from tests.fixtures.node import ROOT


def doctor(node, *options):
    command = ["moehost", "doctor", str(node.inventory()), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def findings(node):
    done = doctor(node, "--json")
    (found,) = json.loads(done.stdout).values()
    return done.returncode, found


def test_a_provisioned_node_is_well(node):
    code, found = findings(node)
    assert [each for each in found["findings"] if each["level"] != "ok"] == []
    assert (code, found["worst"]) == (0, "ok")
    assert {"services", "engine", "disk", "system"} <= {each["area"] for each in found["findings"]}


def test_that_takes_two_lines_to_say(node):
    done = doctor(node)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)
    assert "no errors, no warnings" in done.stdout


def test_a_service_that_is_down_is_an_error(node):
    node.run(f"systemctl stop {node.unit}")
    try:
        code, found = findings(node)
    finally:
        node.run(f"systemctl start {node.unit}")
    assert (code, found["worst"]) == (1, "error")
    (fault,) = (each for each in found["findings"] if each["level"] == "error")
    assert fault["says"] == f"{node.unit} is inactive"
    assert fault["fix"] == f"systemctl start {node.unit}"


def test_no_key_is_among_what_it_says(node):
    key = node.run("cat /etc/moehost/tiny/api-keys")
    assert key not in doctor(node, "--json").stdout
