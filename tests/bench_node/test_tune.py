"""`moehost tune` on a node: what it finds against an exhaustive sweep, what it leaves, and what ends it early."""

import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

import moehost
from moehost import launch, launches, probes, settings
from moehost.launch import Run, Task
from moehost.probes import Measured, Probe, gain
from moehost.space import Order, Space
from moehost.switch import Server
from moehost.tune import CPU_UBATCHES
from tests.fixtures.node import ROOT

ROUNDS = 3
KV_TYPES = ("f16", "q8_0", "q5_1", "q4_0")
LIMIT_S = 300
UNIT = "moehost-tune.service"
FOLDER = "/run/moehost-sweep"


@pytest.fixture(scope="module")
def command(node):
    """The command line; a short workload, so that the sweep comes to its end, too."""
    short = node.changed_settings(workload={"prompt_tokens": 256, "answer_tokens": 16})
    host = f"@podman/{node.name}"
    return ["moehost", "tune", host, "--inventory", str(node.inventory(short)), "--yes", "--json"]


@pytest.fixture(scope="module")
def tuned(node, command, tmp_path_factory):
    """A whole search."""
    folder = tmp_path_factory.mktemp("tune")
    options = ["--resume", str(folder), "--repetitions", str(ROUNDS), "--kv-types", ",".join(KV_TYPES)]
    began = time.monotonic()
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), time.monotonic() - began


@pytest.fixture(scope="module")
def space(node, tuned):
    """What could be chosen."""
    order, found = (json.loads((tuned[0] / f"{each}.json").read_text()) for each in ("order", "found"))
    order |= {key: tuple(order[key]) for key in ("kv_types", "branches")}
    short = node.changed_settings(workload={"prompt_tokens": 256, "answer_tokens": 16})
    return Space.of(Order(**order), settings.read(short), found)


def answers(node, timeout_s=60):
    """Whether the service has become active again, warm, and the unit of the search is gone."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        states = node.run(f"systemctl is-active {node.unit} {UNIT}; true").split()
        if states == ["active", "inactive"]:
            return True
        time.sleep(0.5)
    return False


def launched(node, runs, *properties):
    """What the node's program says of these runs, in a unit with these properties."""
    package = Path(moehost.__file__).parent
    name = node.settings["services"][0]["name"]
    server = Server(node.unit, "127.0.0.1:8080", f"/etc/moehost/{name}/api-keys")
    node.run(f"rm -rf {FOLDER}; mkdir -p {FOLDER}/jobs {FOLDER}/results {FOLDER}/moehost")
    texts = {f"moehost/{each}.py": (package / f"{each}.py").read_text() for each in launch.MODULES}
    texts["task.json"] = json.dumps(asdict(Task(server, "moehost", 5.0, 600.0)))
    texts["jobs/0.json"] = json.dumps([asdict(each) for each in runs])
    for path, text in {**texts, "alive": ""}.items():
        subprocess.run(
            ["podman", "exec", "--interactive", node.name, "sh", "-c", f"cat >{FOLDER}/{path}"],
            input=text,
            text=True,
            check=True,
        )
    options = " ".join(f"--property={each}" for each in ("OOMPolicy=continue", *properties))
    node.run(
        f"systemd-run --quiet --collect --unit=moehost-sweep {options} --setenv=PYTHONPATH={FOLDER} "
        f"python3 -B -m moehost.launch {FOLDER}"
    )
    try:
        while not (result := node.run(f"cat {FOLDER}/results/0.json 2>/dev/null; true")):
            assert node.run("systemctl is-active moehost-sweep; true") == "active"
            time.sleep(0.5)
    finally:
        node.run(f"touch {FOLDER}/end; systemctl stop moehost-sweep 2>/dev/null; true")
        node.run(f"rm -rf {FOLDER}; systemctl reset-failed {node.unit}; systemctl start {node.unit}")
    return json.loads(result)


def test_a_search_is_done_in_five_minutes(tuned):
    assert tuned[2] < LIMIT_S


def test_the_service_answers_again(node, tuned):
    assert answers(node)
    assert node.run("test ! -e /run/moehost-tune && echo gone") == "gone"


def test_each_branch_was_measured_by_real_launches(tuned):
    rows = tuned[1]["probes"]
    assert {row["branch"] for row in rows} == {"threads", "ubatch", "kv-type"}
    assert {row["choice"]["kv_type"] for row in rows} == set(KV_TYPES)
    assert all(row["answer_s"] > 0 and row["predicted_s"] > 0 for row in rows)


def test_the_settings_are_such_that_a_service_can_have(node, tuned):
    assert settings.read(node.changed_settings(**tuned[1]["settings"])).services[0].ubatch


def test_it_is_not_distinguishable_from_the_best_of_an_exhaustive_sweep(node, space, tuned):
    current = space.current
    choices = tuple(
        replace(current, ubatch=ubatch, threads=threads, threads_batch=batch, kv_type=kv_type)
        for kv_type, ubatch, threads, batch in product(
            KV_TYPES, space.ubatches(CPU_UBATCHES, current.ubatch), (1, 2), (1, 2)
        )
    )
    sweep = Probe("sweep", "bench", choices)
    programs = json.loads((tuned[0] / "found.json").read_text())["programs"]
    ended = launched(node, launches.runs(space, sweep, 0, programs, None))
    found = dict(zip(choices, launches.outcome(space, sweep, ended).found, strict=True))
    assert all(isinstance(each, Measured) for each in found.values())
    tokens = space.service.workload.answer_tokens
    times = {choice: each.answer_s(tokens) for choice, each in found.items()}
    chosen = replace(current, **{key: tuned[1]["settings"][key] for key in ("ubatch", "threads", "threads_batch")})
    chosen = replace(chosen, kv_type=tuned[1]["settings"]["kv_type"])
    best = min(times, key=lambda each: sum(times[each]))
    # The best of many is also the luckiest of them: its interval is of as many comparisons.
    assert gain(times[chosen], times[best], len(times)).low <= 0
    # Counted are configurations that were measured, a repeated one anew.
    known = probes.parse((tuned[0] / probes.FILE).read_text())
    assert sum(len(probe.choices) for probe, _ in known) <= len(choices) / 3


def test_a_busy_port_is_a_finding(node, space):
    plan = space.plan(space.current)
    holder = "python3 -c 'import socket,time; s=socket.create_server((\"127.0.0.1\",18999)); time.sleep(60)'"
    node.run(f"systemd-run --quiet --collect --unit=holder {holder}")
    time.sleep(1)
    argv = ["/usr/bin/llama-server", *plan.arguments[:2], "--host", "127.0.0.1"]
    try:
        (ended,) = launched(node, [Run("server", "a", argv, 60.0, {}, 18999, [{}])])
    finally:
        node.run("systemctl stop holder")
    assert launches.failure(ended) == "port 18999 is taken (Address already in use)"


def test_running_out_of_memory_is_a_finding_and_the_next_load_is_tried(node, space):
    # A limit of the address space: systemd in a container may have no say over memory.
    probe = Probe("kv-type", "bench", (space.current, replace(space.current, kv_type="q8_0")))
    ended = launched(node, launches.runs(space, probe, 0, "/usr/bin", None), "LimitAS=140M")
    found = launches.outcome(space, probe, ended).found
    assert all(str(each).startswith("out of memory") for each in found), found


def test_an_answer_of_a_real_server_is_measured(node, space):
    probe = Probe("mtp", "server", (space.current,))
    (run,) = launches.runs(replace(space, rounds=1), probe, 0, "/usr/bin", None)
    (found,) = launches.outcome(space, probe, launched(node, [run])).found
    assert isinstance(found, Measured), found
    assert len(found.prompt_s) == 1


class TestCutOff:
    """The node restores the service by itself; the same command goes on where it was."""

    @pytest.fixture
    def begun(self, node, command, tmp_path):
        """A search that is at its second probe, in a process group of its own."""
        assert answers(node)
        options = ["--resume", str(tmp_path), "--repetitions", "2"]
        process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        file, end_s = tmp_path / "probes.jsonl", time.monotonic() + 120
        while not (file.exists() and file.read_text()):
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.2)
        assert node.run(f"systemctl is-active {node.unit}; true") != "active"
        yield process, tmp_path
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def test_by_control_c_and_then_resumed(self, node, command, begun):
        process, folder = begun
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert answers(node)
        before = (folder / "probes.jsonl").read_text()
        options = ["--resume", str(folder), "--repetitions", "2"]
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "goes on after" in done.stderr
        assert (folder / "probes.jsonl").read_text().startswith(before)
        assert answers(node)

    def test_by_a_kill_of_the_program(self, node, begun):
        process, _ = begun
        node.run(f"kill -9 $(systemctl show --property MainPID --value {UNIT})")
        assert answers(node)
        assert process.wait(timeout=60) == 1

    def test_by_a_kill_of_all_that_asks(self, node, begun):
        process, _ = begun
        for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        process.kill()
        # Nobody tells the node; it notices.
        assert answers(node, timeout_s=150)


def test_a_service_that_is_unknown_is_refused(command):
    done = subprocess.run([*command, "--service", "other"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"moehost: --service: {command[2]} has no 'other'; it has tiny\n"
