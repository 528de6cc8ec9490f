"""Faults that need a machine: its clock, its reset button, and control groups that limit. Rows of the fault drill.

The last file of the suite: it finds the node tuned, and leaves it with the packaged engine.
"""

import subprocess
import time

import pytest

from moehost import virtual
from tests.faults import elsewhere, table
from tests.fixtures.node import ROOT, changes
from tests.fixtures.waiting import until
from tests.vm_node.figures import measured

TRIAL = "/run/systemd/system.control"
# Emulated, and beside other suites.
BACK_S = 300


@pytest.fixture(scope="module")
def settings(node, both):
    """One native service, with the engine that was brought."""
    one = both | {"services": both["services"][:1]}
    changes(node.deploy(one))
    return one


@pytest.fixture
def clock():
    """Seconds since a fault."""
    started = time.monotonic()
    return lambda: time.monotonic() - started


def serves(node):
    """Whether the service is active; it is then warm."""
    return node.run(f"systemctl is-active {node.unit} || true") == "active"


def test_the_clock_jumps_a_year_and_back(node, settings, clock):
    before, year = node.process, int(node.run("date +%Y"))
    with measured("clock forwards and back, a deploy after each"):
        for jump, expected in (("+1 year", year + 1), ("-1 year", year)):
            node.run(f"date --set '{jump}' >/dev/null")
            assert int(node.run("date +%Y")) == expected
            assert node.process == before
            assert node.answers("tiny", 8080)
            assert changes(node.deploy(settings)) == []
    table.record(elsewhere.CLOCK, "the same process all the time, no deploy changed anything", clock())


def test_a_leak_ends_at_memory_max(node, settings, clock):
    node.run(f"systemctl set-property --runtime {node.unit} MemoryMax=700M")
    group = f"/sys/fs/cgroup$(systemctl show --value --property ControlGroup {node.unit})/cgroup.procs"
    leak = "b = []\nwhile True: b.append(bytearray(b'x') * (16 << 20))"
    node.run(f'sh -c "echo \\$\\$ >{group}; exec python3 -c \\"{leak}\\"" || true')
    try:
        until(
            lambda: "oom-kill" in node.run(f"journalctl --no-pager --output cat --unit {node.unit} --lines 30"),
            BACK_S,
        )
        assert node.run("uptime")
    finally:
        node.run(f"rm -r {TRIAL}/{node.unit}.d && systemctl daemon-reload")
    until(lambda: serves(node), BACK_S)
    assert node.answers("tiny", 8080)
    table.record(elsewhere.LEAK, "\"Failed with result 'oom-kill'\", started again by systemd", clock())
    assert changes(node.deploy(settings)) == []


def test_a_reset_in_the_middle_of_a_switch(node, settings, clock):
    old = node.run("readlink /opt/moehost/engine/current")
    # The stand-in is faster than a real engine that is emulated.
    packaged = node.settings | {"engine": {"source": "package", "canary_share": 0}}
    node.disconnect()
    command = ["pyinfra", str(node.inventory(packaged)), "deploy.py", "--yes"]
    deploy = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: node.run(f"ls {TRIAL} 2>/dev/null || true") == node.unit, BACK_S)
        node.disconnect()
        # QEMU is ended like a cut cable.
        virtual.stop(node.machine)
    finally:
        deploy.kill()
        deploy.wait()
    with measured("reset in a switch, until it serves again"):
        virtual.up(node.machine, print)
        until(lambda: serves(node), BACK_S)
    took_s = clock()
    assert node.run("readlink /opt/moehost/engine/current") == old
    assert node.answers("tiny", 8080)
    assert "Service | Switch to the engine that is next" in changes(node.deploy(packaged))
    assert changes(node.deploy(packaged)) == []
    assert node.answers("tiny", 8080)
    table.record(elsewhere.RESET, "the old release answered after the boot; the next deploy switched", took_s)
