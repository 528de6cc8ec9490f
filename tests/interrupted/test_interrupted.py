"""A deploy that is killed at any moment is finished by the next one.

Ten times: something is to be done on the node, the deploy of it is killed (SIGKILL, with all its children) at a
random moment, the next deploy must succeed, the service must answer, and the one after that finds nothing to do.
The seed is printed; INTERRUPTED_SEED repeats a run.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from moehost import sandbox

ROOT = Path(__file__).parents[2]
NAME = "moehost-interrupted"
SEED = int(os.environ.get("INTERRUPTED_SEED", random.randrange(10**6)))
SERVICE = {
    "name": "tiny",
    "model": {"name": "tiny-qwen35moe", "source": "file:.sandbox/tiny-qwen35moe.gguf"},
    "ubatch": 512,
}
# What there is to do when the deploy is killed: a state of the node, other settings, and how long a deploy of it
# takes at least, in seconds: the kill comes within that time.
ROUNDS = [
    ("a fresh node", "fresh", {}, 20),
    ("another context", "true", {"context": 4096}, 5),
    ("a model that is gone", "rm -r /srv/models/tiny-qwen35moe", {}, 6),
    ("an engine that is gone", "apt-get remove --yes llama.cpp-tools && rm -r /opt/moehost/engine", {}, 10),
    ("another port and a stopped service", "systemctl stop llama-server-tiny", {"port": 8090}, 5),
    ("a fresh node again", "fresh", {}, 20),
    ("a package cut off by dpkg", "dpkg --unpack /var/cache/aria2.deb", {}, 6),
    ("lost files", "rm -r /etc/moehost /usr/local/lib/moehost /usr/local/libexec/moehost", {}, 6),
    ("another name", "true", {"name": "other"}, 5),
    ("a broken unit", "truncate -s 100 /etc/systemd/system/llama-server-other.service", {"name": "other"}, 5),
]


def deploy(folder, service):
    """Start a deploy, in a process group of its own."""
    inventory = folder / "hosts.py"
    settings = {"engine": {"source": "package"}, "services": [service]}
    inventory.write_text(f"nodes = [('@podman/{NAME}', {settings!r})]\n")
    command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finished(process):
    """Names of the operations that changed something in a deploy that must succeed."""
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-3000:]
    return [each["name"] for each in json.loads(stdout)["results"]["operations"] if each["success"]]


def run(command):
    return sandbox.execute(NAME, "sh", "-c", command)


@pytest.fixture(scope="module", autouse=True)
def container():
    yield
    sandbox.down(NAME)


@pytest.fixture(scope="module")
def randomness():
    print(f"\nINTERRUPTED_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="module")
def hits():
    """Whether each kill met a deploy that was still at work."""
    return []


@pytest.mark.parametrize(("situation", "command", "change", "at_most_s"), ROUNDS, ids=[each[0] for each in ROUNDS])
def test_the_next_deploy_finishes_what_a_killed_one_began(
    situation, command, change, at_most_s, randomness, hits, tmp_path
):
    if command == "fresh":
        sandbox.down(NAME)
        sandbox.up(NAME, print)
    else:
        if "aria2.deb" in command:
            run("cd /var/cache && apt-get download --quiet aria2 && mv aria2_*.deb aria2.deb")
        run(command)
    service = SERVICE | change

    killed = deploy(tmp_path, service)
    moment_s = randomness.uniform(0.5, at_most_s)
    started = time.monotonic()
    while killed.poll() is None and time.monotonic() - started < moment_s:
        time.sleep(0.05)
    was_running = killed.poll() is None
    hits.append(was_running)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)
    _, talk = killed.communicate()
    last = [line for line in talk.splitlines() if "Starting operation" in line]
    print(
        f"{situation}: killed after {moment_s:.1f} s, running: {was_running}, {last[-1].strip() if last else 'early'}"
    )

    started = time.monotonic()
    finished(deploy(tmp_path, service))
    print(f"    the next deploy took {time.monotonic() - started:.1f} s")
    port = service.get("port", 8080)
    header = f"$(cat /etc/moehost/{service['name']}/api-keys)"
    body = '{"prompt": "once", "n_predict": 4}'
    answer = run(
        f"curl --silent --fail --header \"Authorization: Bearer {header}\" --data '{body}' http://127.0.0.1:{port}/completion"
    )
    assert json.loads(answer)["timings"]["predicted_n"] == 4
    assert run("systemctl --failed --plain --no-legend") == ""
    assert finished(deploy(tmp_path, service)) == []


def test_the_kills_met_deploys_at_work(hits):
    assert len(hits) == len(ROUNDS)
    assert sum(hits) >= 8, "deploys have become faster than the times in ROUNDS: shorten them"
