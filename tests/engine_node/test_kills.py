"""Builds and switches that are killed at any moment end well, and the server serves meanwhile.

Twenty times: another engine is wanted (every second time its release has been taken away, so it is built first), the
deploy is killed (SIGKILL, with all its children) at a random moment of its build or its switch, and the next one must
come to the end. The seed is printed; KILLS_SEED repeats a run.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from tests.fixtures.node import ROOT, changes

pytestmark = [pytest.mark.stand_in, pytest.mark.timed]
SEED = int(os.environ.get("KILLS_SEED", random.randrange(10**6)))
ROUNDS = 20
BUILD, SWITCH = "Engine | Build", "Service | Switch"
SLACK_S = 6


class Deploy:
    """A deploy in a process group of its own, whose talk is read while it runs."""

    def __init__(self, node, settings):
        inventory = node.folder / "hosts.py"
        inventory.write_text(f"nodes = [({'@podman/' + node.name!r}, {settings!r})]\n")
        command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def reach(self, operation):
        """Wait until an operation begins, or all is over."""
        while self.process.poll() is None and not any(operation in line for line in self.lines):
            time.sleep(0.02)

    def kill(self):
        """Whether it was still at work, and the last that it said."""
        was_running = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        said = [line.strip() for line in self.lines if line.strip()]
        return was_running, said[-1] if said else ""


def half_releases(node):
    """Releases that are not what their build.json says."""
    listing = node.run(
        "cd /opt/moehost/engine/releases && for each in *-????????/; do "
        'echo "$each $(cd $each && test -s build.json && cd bin && sha256sum * | tr "\\n" " ")"; done'
    )
    half = []
    for line in listing.splitlines():
        name, *words = line.split()
        build = json.loads(node.run(f"cat /opt/moehost/engine/releases/{name}build.json"))
        sums = dict(zip(words[1::2], words[::2], strict=True))
        if build["source"] == "git" and build["sha256"] != sums:
            half.append(name)
    return half


def test_twenty_kills(node, engine, watch, figures):
    print(f"\nKILLS_SEED={SEED}")
    chance = random.Random(SEED)
    changes(engine.deploy("good"))
    seen = watch()
    node.run(f"systemctl restart {node.unit}")
    restart_s = seen.longest_gap_s()
    hits, worst_s = 0, 0.0
    for number in range(ROUNDS):
        wanted = ("better", "good")[number % 2]
        if number % 4 < 2:
            # Only the current release stays, so the other one is built.
            assert engine.command("prune", "--keep", "1").returncode == 0
            node.run("cd /opt/moehost/engine && rm -rf releases/$(basename $(readlink previous)) previous")
        settings = engine.settings(wanted)
        seen = watch()
        # A build from the cache takes some five seconds with its proof, a switch some nine.
        operation, moment_s = chance.choice([(BUILD, chance.uniform(0, 5)), (SWITCH, chance.uniform(0, 8))])
        if number % 4 >= 2:
            operation = SWITCH
        deploy = Deploy(node, settings)
        deploy.reach(operation)
        with contextlib.suppress(subprocess.TimeoutExpired):
            deploy.process.wait(timeout=moment_s)
        running, last = deploy.kill()
        hits += running
        assert half_releases(node) == []
        begun = time.monotonic()
        changes_of_next = changes(engine.deploy(wanted))
        gap_s = seen.longest_gap_s()
        worst_s = max(worst_s, gap_s)
        print(
            f"{number + 1:2}: killed {moment_s:4.1f} s into {operation!r}, at work: {running}, at {last[:50]!r}; "
            f"next deploy {time.monotonic() - begun:4.1f} s, {len(changes_of_next)} changes; {gap_s:.1f} s away"
        )
        assert engine.serving == engine.link("current")
        assert engine.build["commit"] == engine.commits[wanted]
        assert half_releases(node) == []
        assert node.run("ls -A /opt/moehost/engine/releases | grep '^[.]' || true") == ""
        assert gap_s < restart_s + SLACK_S
    assert changes(engine.deploy(wanted)) == []
    figures["kills"] = (
        f"{hits} of {ROUNDS} at work, at most {worst_s:.1f} s without an answer (restart {restart_s:.1f} s)"
    )
    assert hits >= ROUNDS * 3 // 4, "deploys have become faster than the moments of the kills: shorten them"
