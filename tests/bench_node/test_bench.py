"""`moehost bench` of a node's service: 28 runs, what is kept of them, and what stays on the node."""

import json
import signal
import subprocess
import time
from collections import Counter

import pytest

from moehost import results
from tests.fixtures.node import ROOT


@pytest.fixture(scope="module")
def whole(benched):
    """A benchmark as it is made without options, but for shorter answers."""
    out = benched.folder / "whole"
    started = time.monotonic()
    done = benched.bench("--answer-tokens", 64, "--out", out, "--json")
    print(f"\n28 runs took {time.monotonic() - started:.0f} s")
    assert done.returncode == 0, done.stderr
    return out, done


def test_28_runs_are_measured(whole):
    session = results.load(whole[0])
    assert Counter(run.prompt_tokens for run in session.measured) == dict.fromkeys(session.order["lengths"], 4)
    assert len(session.measured) == 28
    # As far as the service's context of 8192 tokens reaches.
    assert session.order["lengths"][-1] == 8192 - 64 - 1


def test_every_prompt_was_computed_whole(whole):
    for run in results.load(whole[0]).measured:
        assert run.clock == "server"
        assert run.prompt_n == run.prompt_tokens
        assert run.predicted_n == 64


def test_both_clocks_agree(whole):
    """What this program saw holds what the server has timed, and little more."""
    for run in results.load(whole[0]).measured:
        assert run.first_token_s >= run.prompt_s * 0.98
        assert run.total_s >= (run.prompt_s + run.decode_s) * 0.98
    assert results.load(whole[0]).measured[0].gap_max_s > 0


def test_plan_hardware_and_software_are_kept(whole, benched):
    session = results.load(whole[0])
    plan = json.loads(benched.node.run("cat /etc/moehost/tiny/plan.json"))
    manifest = json.loads(benched.node.run("cat /srv/models/tiny-qwen35moe/manifest.json"))
    assert session.plan == plan
    found = session.fingerprint
    assert found["argv"] == plan["argv"]
    assert found["model"]["sha256"] == {each["name"]: each["sha256"] for each in manifest["files"]}
    assert found["cores"] >= 1
    assert found["memory_mib"] > 0
    assert {"cpu", "kernel", "os", "engine", "engine_commit"} <= set(found)


def test_what_is_posted_names_no_host_no_key_and_no_folder(whole, benched):
    out, done = whole
    key = benched.node.run("cat /etc/moehost/tiny/api-keys").split()[0]
    posted = [
        done.stdout,
        *(path.read_text() for path in out.glob("*.html")),
        *(path.read_text() for path in out.glob("*.md")),
    ]
    assert len(posted) == 3
    for text in posted:
        assert benched.node.name not in text
        assert "/srv/models" not in text
        assert "/etc/moehost" not in text
    for path in out.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_nothing_stays_on_the_node(whole, benched):
    assert benched.node.run("ls -d /run/moehost-bench* 2>/dev/null || echo none") == "none"
    assert benched.node.run("systemctl list-units --all --plain --no-legend 'moehost-bench*'") == ""


def test_interrupted_nothing_goes_on_and_the_rest_can_be_measured(benched):
    out = benched.folder / "interrupted"
    options = ("--lengths", "64,512", "--runs", 8, "--answer-tokens", 64, "--out", out)
    running = subprocess.Popen(benched.command(*options), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        if ": 2 of 8:" in line:
            break
    unit = benched.node.run(
        "systemctl show -p User,DynamicUser --value moehost-bench; ps -o user= -C python3 | sort -u"
    )
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "go on with --resume" in said
    # It was nobody's with rights on the node.
    assert "root" not in unit.split()
    assert "yes" in unit.split()
    assert benched.node.run("systemctl is-active moehost-bench || true") == "inactive"
    measured = len(results.load(out).measured)
    assert 2 <= measured < 8
    done = benched.bench("--resume", out)
    assert done.returncode == 0, done.stderr
    assert len(results.load(out).measured) == 8


def test_a_service_that_does_not_run_is_refused(benched):
    benched.node.run(f"systemctl stop {benched.node.unit}")
    try:
        done = benched.bench()
    finally:
        benched.node.run(f"systemctl start {benched.node.unit}")
    assert done.returncode == 1
    assert done.stderr == f"moehost: {benched.host}: {benched.node.unit} is inactive; deploy first\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--service", "other"), "--service: @podman/{node} has no 'other'; it has tiny"),
        (
            ("--depth", "16384"),
            "a prompt of 16384 tokens and 512 of answer are more than the 8192 that the server has",
        ),
    ],
)
def test_what_can_not_be_measured_is_one_line(benched, arguments, sentence):
    done = benched.bench(*arguments, "--out", benched.folder / "none")
    assert done.returncode in (1, 2)
    assert sentence.format(node=benched.node.name) in done.stderr
    assert not (benched.folder / "none").exists()


def test_one_at_a_time(benched):
    benched.node.run("systemd-run --quiet --collect --unit=moehost-bench sleep 60")
    try:
        done = benched.bench()
    finally:
        benched.node.run("systemctl stop moehost-bench")
    assert done.returncode == 1
    assert "a benchmark is at work there; wait, or end it by `systemctl stop moehost-bench`" in done.stderr
