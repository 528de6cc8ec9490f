"""An engine is built on the node for this very machine, proven, and becomes a release; or it doesn't."""

import json
import re
import subprocess
import threading
import time

import pytest

from tests.fixtures.node import ROOT, changes

BUILD = "Engine | Build ik_llama.cpp"
KEY = "$(cat /etc/moehost/tiny/api-keys)"


def ask(node, prompt="once"):
    """Tokens and text of an answer of the service."""
    body = json.dumps({"prompt": prompt, "n_predict": 8, "stop": [], "ignore_eos": True})
    answer = json.loads(
        node.run(
            f"curl --silent --fail --header \"Authorization: Bearer {KEY}\" --data '{body}' "
            "http://127.0.0.1:8080/completion"
        )
    )
    return answer["timings"]["predicted_n"], answer["content"]


def test_the_engine_is_built_proven_and_switched_to(node, engine, figures):
    packaged = engine.link("current")
    started = time.monotonic()
    looking = threading.Thread(target=look_at_the_build, args=(node, seen := {}), daemon=True)
    looking.start()
    deploy = engine.deploy()
    seconds = time.monotonic() - started
    assert any(name.startswith(BUILD) for name in changes(deploy))
    figures["first build"] = f"{engine.build['duration_s']} s (deploy {seconds:.0f} s)"
    assert engine.link("current") == engine.link("next") == engine.serving
    assert engine.link("previous") == packaged
    assert ask(node)[0] == 8
    # While it was built: nobody of importance, behind everything else, and without the memory of the server.
    assert (seen["User"], seen["Nice"], seen["OOMScoreAdjust"]) == ("moehost-build", "19", "1000")
    assert int(seen["MemoryMax"]) < int(node.run("awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo"))
    assert re.search(r"\d+ % built \(\d+ of \d+ steps\)", deploy.stderr)


def look_at_the_build(node, seen):
    """Keep the properties of the build's unit while it is at work."""
    properties = "ActiveState,User,Nice,OOMScoreAdjust,MemoryMax"
    while seen.get("ActiveState") != "active":
        text = node.run(f"systemctl show --property {properties} moehost-build.service")
        seen.update(line.split("=", 1) for line in text.splitlines())
        time.sleep(1)


def test_build_json_says_what_from_what_and_what_was_seen(node, engine):
    build, commit = engine.build, engine.commits["good"]
    assert engine.link("current").startswith(commit[:12] + "-")
    assert (build["source"], build["dialect"], build["commit"], build["cuda"]) == ("git", "ik", commit, None)
    assert build["version"] == f"{build['build_number']} ({commit[: len(build['version'].split('(')[1]) - 1]})"
    assert "GGML_NATIVE=ON" in build["options"] and "BUILD_SHARED_LIBS=OFF" in build["options"]
    assert build["compiler"].startswith("gcc ")
    sums = node.run("cd /opt/moehost/engine/current/bin && sha256sum *").splitlines()
    assert build["sha256"] == {name: digest for digest, name in map(str.split, sums)}
    assert set(build["sha256"]) == {"llama-server", "llama-bench", "llama-sweep-bench"}
    assert build["proofs"]["answer"] == "8 tokens on the CPU"
    if "avx512_vnni" in build["isa"]:
        assert re.fullmatch(r"[1-9]\d* in the server", build["proofs"]["vpdpbusd"])


def test_a_release_belongs_to_root_and_nobody_else_writes_it(node):
    owners = node.run("find /opt/moehost/engine/releases/*-*/ -printf '%u %#m %y\\n' | sort -u").splitlines()
    assert {line.split()[0] for line in owners} == {"root"}
    assert not [line for line in owners if line.endswith(("f", "d")) and int(line.split()[1], 8) & 0o022]


def test_the_report_s_flags_serve(node, engine):
    """The command line of the unit is the one of the published runs, as far as there are no cards."""
    words = node.run("systemctl show --property ExecStart --value llama-server-tiny").split()
    for flag in ("-c", "-ub", "-t", "-ctk", "-fa", "--no-mmap", "--jinja"):
        assert flag in words


def test_no_op_run(node, engine, figures):
    inventory = node.folder / "hosts.py"
    command = ["pyinfra", str(inventory), "deploy.py", "--yes", "--json", "-vvv"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert changes(run) == []
    by_operation = run.stderr.split("--> Starting operation: ")
    asked = sum(part.count(">>> ") for part in by_operation if part.startswith("Engine |"))
    figures["no-op run of the role"] = f"{asked} remote commands"
    assert asked <= 3


def test_a_changed_flag_of_a_service_does_not_build(node, engine):
    before = engine.releases
    done = changes(engine.deploy(service={"context": 4096}))
    assert not any(name.startswith("Engine") for name in done)
    assert engine.releases == before
    assert changes(engine.deploy()) == ["Service | Run tiny, warm"]


def test_the_same_build_again_comes_from_the_cache(node, engine, figures):
    first = engine.build["duration_s"]
    release = engine.link("current")
    # Another engine serves, so that the release may be taken away.
    if "better" in engine.commits:
        changes(engine.deploy("better"))
    else:
        back = engine.command("rollback")
        assert back.returncode == 0, back.stderr
    node.run(f"rm -rf /opt/moehost/engine/releases/{release}")
    changes(engine.deploy())
    again = engine.build["duration_s"]
    figures["second build"] = f"{again} s ({first / max(again, 1):.0f} times as fast)"
    assert engine.link("current") == release
    assert first >= 5 * again


FAULTS = {
    "does-not-compile": "does not build",
    "wrong-commit": "is no release: --version says",
    "no-answer": "is no release: the server loads a small model and does not answer",
    "no-vnni": "is no release: the processor has AVX512-VNNI, but there is no vpdpbusd",
}


@pytest.mark.stand_in
@pytest.mark.parametrize("fault", FAULTS)
def test_a_build_that_is_not_good_never_becomes_a_release(node, engine, fault):
    if fault == "no-vnni" and "avx512_vnni" not in engine.build["isa"]:
        pytest.skip("this processor has no AVX512-VNNI")
    before = engine.releases, engine.serving, node.process
    deploy = engine.deploy(fault)
    assert deploy.returncode == 1
    assert FAULTS[fault] in deploy.stderr
    assert (engine.releases, engine.serving, node.process) == before
    assert node.run("ls -A /opt/moehost/engine/releases | grep '^[.]' || true") == ""


def test_a_commit_that_is_not_there(node, engine):
    before = engine.releases, node.process
    deploy = engine.deploy("f" * 40)
    assert deploy.returncode == 1
    assert f"the commit {'f' * 40} is not to be had from /srv/git/engine" in deploy.stderr
    assert (engine.releases, node.process) == before


def test_cuda_where_there_is_none_is_no_build_for_the_cpu(node, engine):
    before = engine.releases, node.process
    deploy = engine.deploy(cuda="on")
    assert deploy.returncode == 1
    assert "engine.cuda is 'on', but nvidia-smi names no card to build for" in deploy.stderr
    assert (engine.releases, node.process) == before


def test_afterwards_nothing_is_left_to_do(node, engine):
    changes(engine.deploy())
    assert changes(engine.deploy()) == []
    assert node.run("systemctl --failed --plain --no-legend") == ""
