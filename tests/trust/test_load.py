"""The service under 64 clients and, at the same time, under 64 more that come by the gateway from another computer.

LOAD_S is how long, in seconds; five minutes if nobody says. Among the clients are such that drop a stream in the
middle, leave before an answer has begun, or send rubbish. Afterwards everything must be as it was: the same
processes, no slot that is still at work, the memory that it had after the first part of the time.
"""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.fixtures.gateway_client import HOST, PORT
from tests.fixtures.node import ROOT

SECONDS = float(os.environ.get("LOAD_S", "300"))
CLIENTS = 64
LOAD = Path(__file__).with_name("load.py")
FIGURES = ROOT / ".sandbox/load-figures"
GATEWAY = "moehost-gateway.service"
# Grows by what a request takes for a moment; a leak of a kilobyte a request would be more.
FLAT = 1.05


class Watch:
    """What both processes hold, looked at every few seconds."""

    def __init__(self, node):
        self.node, self.stopped = node, threading.Event()
        self.samples = {node.unit: [], GATEWAY: []}
        self.files = {}
        self.thread = threading.Thread(target=self._run)

    def resident_mib(self, unit):
        """Resident memory of a unit's process."""
        pid = self.node.run(f"systemctl show --property MainPID --value {unit}")
        return int(self.node.run(f"awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status")) / 1024

    def _run(self):
        while not self.stopped.wait(SECONDS / 60):
            for unit, found in self.samples.items():
                found.append(self.resident_mib(unit))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()

    def growth(self, unit):
        """Memory in the last two fifths of the time over that in the two before, by the least of each.

        A collector of garbage lets memory swing by a tenth. What it comes down to in between is what is really held.
        """
        found = self.samples[unit]
        fifth = len(found) // 5
        return min(found[-2 * fifth :]) / min(found[-4 * fifth : -2 * fifth])


def processes(node):
    """What names the processes of both units: they must not have been started anew."""
    shown = "MainPID,NRestarts,ActiveState,ExecMainStartTimestampMonotonic"
    return {unit: node.run(f"systemctl show --property {shown} {unit}") for unit in (node.unit, GATEWAY)}


def ask(node, path):
    """Status of a question on the node itself, and its answer."""
    curl = "curl --silent --max-time 30 --write-out '\\n%{http_code}' --config -"
    text = node.run(
        f"printf 'header = \"Authorization: Bearer %s\"' $(cat /etc/moehost/tiny/api-keys) | "
        f"{curl} http://127.0.0.1:8080{path}"
    )
    answer, _, status = text.rpartition("\n")
    return int(status), answer


def figures_of(text, names):
    """Some figures of /metrics."""
    pairs = (line.split() for line in text.splitlines() if line.startswith(tuple(names)))
    return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def loaded(node, clients):
    """What the clients met, and what was seen of the units meanwhile."""
    subprocess.run(["podman", "cp", str(LOAD), f"{node.name}:/run/load.py"], check=True)
    wish = {"clients": CLIENTS, "seconds": SECONDS}
    direct = wish | {"url": "http://127.0.0.1:8080", "key": node.run("cat /etc/moehost/tiny/api-keys")}
    by_gateway = wish | {
        "url": f"https://{HOST}:{PORT}",
        "key": clients.keys["alice"],
        "ca": str(clients.ca),
        "connect": clients.address,
    }
    before, found = processes(node), {}

    def run(name, command, stdin):
        done = subprocess.run(command, input=json.dumps(stdin), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)

    words = {
        "direct": (["podman", "exec", "--interactive", node.name, "python3", "/run/load.py"], direct),
        "by the gateway": (["ip", "netns", "exec", clients.outside.name, "python3", str(LOAD)], by_gateway),
    }
    with Watch(node) as watch:
        threads = [threading.Thread(target=run, args=(name, *each)) for name, each in words.items()]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert set(found) == set(words), "a program of the clients has failed"
    figures = [f"load: {2 * CLIENTS} clients for {SECONDS:.0f} s"]
    figures += [f"  {name}: {sum(each['done'].values())} requests, {each}" for name, each in found.items()]
    figures += [f"  {unit}: memory {watch.growth(unit):.3f} times" for unit in watch.samples]
    FIGURES.write_text("\n".join(figures) + "\n")
    print(*figures, sep="\n")
    return found, watch, before


@pytest.mark.parametrize("way", ["direct", "by the gateway"])
def test_every_request_ended_as_it_should(loaded, way):
    found = loaded[0][way]
    assert found["unexpected"] == {}
    assert set(found["done"]) == {"answer", "stream", "cancelled", "impatient", "rubbish"}


def test_nothing_was_started_anew(node, loaded):
    assert processes(node) == loaded[2]


def test_memory_is_flat(node, loaded):
    for unit in (node.unit, GATEWAY):
        assert loaded[1].growth(unit) < FLAT, loaded[1].samples[unit]


def test_no_slot_is_stuck(node, loaded):
    wanted = {"llamacpp:requests_processing": 0.0, "llamacpp:requests_deferred": 0.0}
    end = time.monotonic() + 30
    while (found := figures_of(ask(node, "/metrics")[1], wanted)) != wanted and time.monotonic() < end:
        time.sleep(1)
    assert found == wanted


def test_it_is_healthy_and_answers_in_all_slots(node, loaded, clients):
    started = time.monotonic()
    assert ask(node, "/health")[0] == 200
    assert time.monotonic() - started < 5
    slots = node.settings["services"][0]["parallel"]
    answers = [None] * slots

    def answer(number):
        answers[number] = clients.chat(clients.keys["alice"]).status

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(slots)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert answers == [200] * slots
