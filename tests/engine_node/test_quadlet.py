"""A service in a container: Podman's own generator makes the unit, systemd starts it, and it answers.

Podman, crun, the image and its server are real. The node's files lie on FUSE, and it has no card.
"""

import json
import time

import pytest

from moehost import sandbox
from tests.engine_node.test_image import STORAGE
from tests.fixtures.node import changes

pytestmark = pytest.mark.stand_in
QUADLET = "/etc/containers/systemd/llama-server-tiny.container"
NATIVE = "/etc/systemd/system/llama-server-tiny.service"
GENERATOR = "/usr/lib/systemd/system-generators/podman-system-generator"
CONTAINER = {"runtime": "container"}
KEY = "$(cat /etc/moehost/tiny/api-keys)"
ASK = f'curl --silent --fail --header "Authorization: Bearer {KEY}" http://127.0.0.1:8080/v1/models'
RUN = "Service | Run tiny, warm"
SWITCH = "Service | Switch to the engine that is next"


@pytest.fixture(scope="module", autouse=True)
def contained(engine, node, figures):
    """The service of the node runs in a container, and natively again afterwards."""
    node.run(
        "apt-get -qq update && apt-get -qq --no-install-recommends install podman crun fuse-overlayfs >/dev/null"
    )
    sandbox.execute(node.name, "install", "-D", "/dev/stdin", "/etc/containers/storage.conf", stdin=STORAGE)
    changes(engine.deploy())
    started = time.monotonic()
    assert RUN in changes(engine.deploy(service=CONTAINER, image={}))
    figures["native to container"] = f"{time.monotonic() - started:.0f} s (with the image, where there was none)"
    yield
    changes(engine.deploy())
    assert node.run(f"ls -d {QUADLET} {NATIVE} 2>/dev/null || true") == NATIVE
    assert node.run("podman ps --quiet") == ""
    node.run(f"systemctl is-active {node.unit} && systemctl is-enabled {node.unit} && {ASK}")


def words(node, path="/proc/{pid}/cmdline"):
    """The command line of the server in the container."""
    return node.run(f"tr '\\0' '\\n' <{path.format(pid=server(node))}").splitlines()


def server(node):
    """The pid of the server, seen from outside."""
    return node.run("podman inspect --format '{{.State.Pid}}' llama-server-tiny")


def test_the_unit_is_the_generators_and_no_other_is_left(node):
    assert (
        node.run(f"systemctl show --value --property FragmentPath {node.unit}")
        == f"/run/systemd/generator/{node.unit}"
    )
    assert node.run(f"systemctl show --value --property UnitFileState {node.unit}") == "generated"
    assert node.run(f"ls -d {QUADLET} {NATIVE} 2>/dev/null || true") == QUADLET
    assert node.run(f"find /etc/systemd -name {node.unit}") == ""


def test_it_answers(node):
    assert json.loads(node.run(ASK))["data"][0]["id"] == "tiny"


def test_the_server_has_the_plans_command_line_word_by_word(node):
    plan = json.loads(node.run("cat /etc/moehost/tiny/plan.json"))
    assert words(node)[1:] == plan["argv"]


def test_it_is_the_release_of_the_node(node, engine):
    image = node.run("podman inspect --format '{{.ImageName}}' llama-server-tiny")
    assert image == f"localhost/moehost/ik_llama:{engine.link('current')}"


def test_it_is_nobody_and_may_nothing_but_nice(node):
    status = node.run(f"cat /proc/{server(node)}/status")
    assert "Uid:\t10001\t10001\t10001\t10001" in status
    assert "CapEff:\t0000000000800000" in status and "CapBnd:\t0000000000800000" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    root = f"/proc/{server(node)}/root"
    assert "ro," in node.run(f"grep ' / ' /proc/{server(node)}/mounts")
    assert "ro," in node.run(f"grep ' /srv/models/' /proc/{server(node)}/mounts")
    assert node.run(f"df -B1G --output=size {root}/dev/shm | tail -n 1").strip() == "16"


def test_the_keys_are_in_a_secret_that_only_the_server_reads(node):
    root = f"/proc/{server(node)}/root"
    assert node.run(f"stat -c '%u %a' {root}/run/secrets/api-keys") == "10001 400"
    assert node.run(f"cmp {root}/run/secrets/api-keys /etc/moehost/tiny/api-keys && echo same") == "same"
    key = node.run("cat /etc/moehost/tiny/api-keys")
    for text in (
        "\n".join(words(node)),
        node.run(f"tr '\\0' '\\n' </proc/{server(node)}/environ"),
        node.run(f"cat {QUADLET}"),
    ):
        assert key not in text
    assert key not in node.run("podman inspect llama-server-tiny")


def test_a_second_run_changes_nothing(engine, node):
    before = server(node)
    assert changes(engine.deploy(service=CONTAINER, image={})) == []
    assert server(node) == before


def test_other_settings_restart_it(engine, node):
    before = server(node)
    assert changes(engine.deploy(service={**CONTAINER, "context": 4096, "sys_nice": False}, image={})) == [RUN]
    assert server(node) != before
    assert "CapEff:\t0000000000000000" in node.run(f"cat /proc/{server(node)}/status")
    assert changes(engine.deploy(service=CONTAINER, image={})) == [RUN]


def test_other_keys_reach_it_at_its_next_start(engine, node):
    node.run("rm /etc/moehost/tiny/api-keys")
    assert RUN in changes(engine.deploy(service=CONTAINER, image={}))
    node.run(ASK)


def test_it_comes_back_when_the_server_is_killed(node):
    before = server(node)
    node.run(f"kill -KILL {before}")
    node.run(f"for n in $(seq 120); do {ASK} >/dev/null && exit; sleep 1; done; exit 1")
    assert server(node) != before


def test_a_generator_that_changes_the_command_line_is_refused(engine, node):
    """Podman 5.4 loses a command line in silence that holds an escape it does not know; here it is one by hand."""
    before = server(node)
    node.run(
        f"real=$(readlink -f {GENERATOR}) && rm {GENERATOR} && ln -s $real {GENERATOR}.real && "
        f"printf '#!/bin/sh\\n%s \"$@\" | sed s/--no-slots/--slots/\\n' $real >{GENERATOR} && chmod 755 {GENERATOR}"
    )
    try:
        refused = engine.deploy(service={**CONTAINER, "context": 4096}, image={})
        assert refused.returncode == 1
        assert (
            "services[0].runtime: Podman's generator changes the plan: '--no-slots' has become '--slots'"
            in refused.stderr
        )
        assert server(node) == before
    finally:
        node.run(f"mv {GENERATOR}.real {GENERATOR} && systemctl daemon-reload")


def test_an_engine_that_fails_its_canary_brings_the_old_container_back(engine, node):
    good = engine.link("current")
    failed = engine.deploy("rubbish", service=CONTAINER, image={})
    assert failed.returncode == 1
    assert "rubbish" in failed.stderr
    assert engine.link("current") == good
    assert node.run("podman inspect --format '{{.ImageName}}' llama-server-tiny").endswith(good)
    node.run(ASK)
    assert node.run("ls /run/systemd/system.control 2>/dev/null || true") == ""


def test_another_engine_is_switched_to(engine, node, figures):
    assert SWITCH in changes(engine.deploy("better", service=CONTAINER, image={}))
    assert node.run("podman inspect --format '{{.ImageName}}' llama-server-tiny").endswith(engine.link("current"))
    assert engine.build["commit"] == engine.commits["better"]
    assert changes(engine.deploy("better", service=CONTAINER, image={})) == []
