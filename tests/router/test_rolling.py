"""The heart of it: users notice nothing of a switch of engines, and little of a server that is killed."""

import subprocess
import threading
import time
import uuid

from tests.fixtures.node import ROOT
from tests.router.clients import Crowd, WrongError
from tests.router.conftest import FRONT, NODES

CLIENTS, TOKENS = 50, 24
LOG = "journalctl --no-pager --output cat --unit moehost-router"
# What an upgrade of the package does: the program is another one, of which the deploy makes another release. The
# engine in it is the same, with a byte more at its end.
UPGRADE = "cd /usr/bin && cp -p llama-server x && printf '\\0' >>x && mv x llama-server"


def test_fifty_streams_during_a_switch_of_three_nodes(fleet, client, figures):
    def releases():
        return {name: fleet.run(name, "basename $(readlink /opt/moehost/engine/current)") for name in NODES}

    before = releases()
    crowd = Crowd(client, CLIENTS, TOKENS)
    time.sleep(5)
    assert crowd.whole > 0 and not crowd.wrong
    for name in NODES:
        fleet.run(name, UPGRADE)
    pids = {name: fleet.run(name, "systemctl show --property MainPID --value llama-server-tiny") for name in NODES}
    began_s = time.monotonic()
    command = ["moehost", "deploy", str(fleet.inventory()), "--serial", "1", "--yes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took_s = time.monotonic() - began_s
    time.sleep(3)
    crowd.stop()
    print(f"{crowd.whole} whole streams, wrong: {dict(crowd.wrong)}")
    # Those that took longest, in ms: waited for a slot, connected, until the first piece, all.
    print(fleet.run(FRONT, f"{LOG} | grep -o 'tiny podman.*' | sort -t/ -k4 -n | tail -n 5"))
    assert done.returncode == 0, done.stderr
    assert not crowd.wrong
    after = releases()
    assert all(after[name] != before[name] for name in NODES)
    for name in NODES:
        assert fleet.run(name, "systemctl show --property MainPID --value llama-server-tiny") != pids[name]
        assert fleet.status()[name]["drained_until"] is None
    figures["rolling switch"] = (
        f"of {len(NODES)} nodes in {took_s:.0f} s beside {CLIENTS} clients: {crowd.whole} streams, "
        f"{sum(crowd.wrong.values())} failed, the longest {crowd.longest_s:.1f} s"
    )
    assert fleet.deploy() == []


def test_a_server_that_is_killed_breaks_its_own_streams_only(fleet, client, figures):
    victim, events, wrong = NODES[1], [threading.Event() for _ in range(6)], dict[int, str]()

    def listen(number):
        try:
            client.stream(f"{uuid.uuid4()}", 1900, events[number])
        except WrongError as error:
            wrong[number] = str(error)

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(events))]
    for each in threads:
        each.start()
    assert all(each.wait(60) for each in events)
    held = fleet.requests()[victim]
    assert held > 0
    fleet.run(victim, "systemctl kill --kill-whom=main --signal=KILL llama-server-tiny.service")
    began_s = time.monotonic()
    later = [client.chat(f"after the kill {number}", 1).status for number in range(12)]
    assert later == [200] * 12
    figures["kill"] = f"{held} streams broke, 12 of 12 later requests were answered"
    for each in threads:
        each.join()
    assert len(wrong) == held
    print(f"12 requests within {time.monotonic() - began_s:.1f} s after the kill; broken: {list(wrong.values())[:1]}")
    fleet.wait_ready(len(NODES), within_s=120)
