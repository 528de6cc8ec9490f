"""Nodes that go away."""

import subprocess
import time

from tests.faults.drill import RUN, Drill, faults
from tests.faults.packages import INSTALL, REMOVE
from tests.fixtures.node import ROOT, changes
from tests.fixtures.waiting import until

FAULTS, fault = faults()
PROGRAMS = "Models | Install the programs that fetch models and try plans"


def podman(*words: str) -> None:
    done = subprocess.run(["podman", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def gone_in_a_deploy(drill: Drill, *how: str, at: str) -> str:
    """The node goes away while a deploy is at an operation, and comes back; how long it took to answer."""
    drill.something_to_do()
    # A machine that goes down stops all programs before it ends them: nsenter stops with its own, and stays so.
    with drill.deploying(NO_SHORTCUT="yes") as deploy:
        deploy.reach(at)
        time.sleep(0.3)
        podman(*how, drill.node.name)
        ended = deploy.end()
    podman("start", drill.node.name)
    assert ended.returncode == 1, ended.stderr
    drill.clock()
    # By itself, whatever the deploy has left.
    until(drill.is_ready, 90)
    return f"answers {time.monotonic() - drill._since_s:.0f} s after the start, by itself"


@fault(
    "the node is shut down in the middle of a deploy",
    "the deploy fails; the service comes back by itself at the next boot; the next deploy converges",
)
def node_stopped(drill: Drill) -> str:
    drill.run(REMOVE)
    seen = gone_in_a_deploy(drill, "stop", "--time", "20", at=INSTALL)
    drill.converges(INSTALL, RUN)
    return seen


@fault(
    "the power is cut while a deploy writes (every process of the node is killed at once)",
    "the deploy fails; the service comes back by itself at the next boot; the next deploy converges",
)
def power_cut(drill: Drill) -> str:
    drill.run("rm -r /usr/local/lib/moehost")
    seen = gone_in_a_deploy(drill, "kill", at=PROGRAMS)
    drill.converges(PROGRAMS, RUN)
    return seen


@fault(
    "of three nodes two can't be reached: one is not there, one has its SSH port closed",
    "the third is provisioned, the deploy names the two and its exit code is not 0",
)
def nodes_unreachable(drill: Drill) -> str:
    # Podman looks for it on this computer only.
    absent, closed = f"localhost/{drill.node.name}-gone", "127.0.0.2"
    drill.something_to_do()
    settings = drill.settings
    hosts = [
        (f"@podman/{absent}", settings),
        (closed, settings | {"ssh_port": 9, "ssh_user": "root", "ssh_connect_retries": 0}),
        (f"@podman/{drill.node.name}", settings),
    ]
    inventory = drill.node.folder / "three.py"
    inventory.write_text(f"nodes = {hosts!r}\n")
    drill.clock()
    command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    for each in (absent, closed):
        lines = [line for line in done.stderr.splitlines() if each in line]
        assert any("Could not connect" in line or "failed" in line for line in lines), done.stderr
    assert done.returncode != 0, done.stderr
    assert changes(drill.deploy()) == []
    drill.recovered()
    return f"exit code {done.returncode}, a line for each of the two; the third has its new settings"
