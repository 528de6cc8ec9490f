"""Docker and containerd: how they get to know CDI, when they are restarted, and what is refused."""

import json

import pytest

from roles.facts import FileStates
from roles.nvidia_container_toolkit.facts import DAEMON_JSON, Runtimes
from roles.nvidia_container_toolkit.runtimes import runtime_configured
from tests.operations.plain import in_turn, play

CDI = '{\n    "features": {\n        "cdi": true\n    }\n}\n'
FOLDERS = "/etc/cdi\n/var/run/cdi\n"
RESTART = "systemctl restart docker.service"


def node(**more):
    """What a node says whose Docker and containerd have CDI and run."""
    return {
        "cards": "/sys/bus/pci/devices/0000:41:00.0/vendor\n",
        "docker": "Docker version 28.3.1, build 38b7060\n",
        "docker_config": CDI,
        "docker_state": "active\n",
        "docker_folders": FOLDERS,
        "containerd": "containerd containerd.io 1.7.27 05044ec\n",
        "containerd_config": "    enable_cdi = true\n",
    } | more


def run(runtime, *states):
    return play(runtime_configured, {Runtimes: in_turn(*states), FileStates: {}}, runtime=runtime)


def refusal(runtime, *states):
    commands, _ = run(runtime, *states)
    name, (reason,), _ = commands[-1]
    assert name == "_refused"
    return reason, commands[:-1]


@pytest.mark.parametrize(("runtime", "said"), [("docker", "Docker has CDI"), ("containerd", "containerd has CDI")])
def test_the_second_run_changes_nothing(runtime, said):
    assert run(runtime, node()) == ([], [said])


@pytest.mark.parametrize("runtime", ["docker", "containerd"])
def test_a_machine_without_a_card(runtime):
    assert run(runtime, node(cards="")) == ([], [f"no NVIDIA card in this machine: {runtime} is left alone"])


def test_docker_is_told_and_restarted_and_keeps_what_it_was_told_before():
    before = '{"features": {"containerd-snapshotter": true}, "data-root": "/srv/docker"}\n'
    (write, restart), noops = run("docker", node(docker_config=before, docker_folders=""), node())
    assert write["command"].endswith(f" {DAEMON_JSON}")
    assert json.loads(write["_stdin"]) == {
        "features": {"containerd-snapshotter": True, "cdi": True},
        "data-root": "/srv/docker",
    }
    assert (restart, noops) == (RESTART, ["Docker has CDI"])


def test_a_docker_that_does_not_run_is_not_started():
    (write,), _ = run("docker", node(docker_config="", docker_state="inactive\n", docker_folders=""))
    assert write["_stdin"] == CDI


def test_a_run_that_was_cut_off_before_the_restart():
    assert run("docker", node(docker_folders=""), node())[0] == [RESTART]


def test_a_docker_that_does_without_cdi_all_the_same():
    reason, before = refusal("docker", node(docker_folders=""))
    assert reason.startswith("Docker does without CDI after a restart")
    assert before == [RESTART]


def test_containerd_is_configured_and_restarted_in_one_go():
    ((command,), _) = run("containerd", node(containerd_config="    enable_cdi = false\n"))
    configure = "nvidia-ctk runtime configure --runtime=containerd --cdi.enabled"
    assert command.startswith("systemd-run --quiet --wait --collect ")
    assert command.endswith(f"'{configure} && systemctl try-restart containerd.service'")


@pytest.mark.parametrize(
    ("runtime", "state", "why"),
    [
        ("docker", {"docker": ""}, "nvidia.container_runtimes: Docker is not installed"),
        ("docker", {"docker": "podman version 4.9.3\n"}, "nvidia.container_runtimes: Docker is not installed"),
        ("docker", {"docker": "Docker version 20.10.24\n"}, "nvidia.container_runtimes: Docker 20.10 knows no CDI"),
        ("docker", {"docker_config": "{\n"}, "/etc/docker/daemon.json is not the object"),
        ("containerd", {"containerd": "containerd x 1.6.20\n"}, "nvidia.container_runtimes: containerd 1.6 knows no"),
    ],
)
def test_what_is_refused_is_left_as_it_is(runtime, state, why):
    reason, before = refusal(runtime, node(**state))
    assert reason.startswith(why)
    assert before == []
