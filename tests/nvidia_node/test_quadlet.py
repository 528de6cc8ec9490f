"""The Quadlets of services with cards, read by the generator of the node's own Podman (5.4)."""

import shlex

import pytest

from moehost import container, sandbox
from tests.fixtures.node import ROOT

QUADLETS = sorted((ROOT / "tests/fixtures/units").glob("*.container"))
FOLDER = "/tmp/quadlets"
GENERATOR = "/usr/lib/systemd/system-generators/podman-system-generator"


@pytest.fixture(params=QUADLETS, ids=lambda path: path.name)
def quadlet(request):
    return request.param.read_text()


@pytest.fixture
def generated(node, healthy, quadlet):
    """The unit that the generator makes of a Quadlet."""
    node.run(f"rm -rf {FOLDER} && mkdir {FOLDER}")
    sandbox.execute(node.name, "install", "/dev/stdin", f"{FOLDER}/llama-server-qwen.container", stdin=quadlet)
    return node.run(f"QUADLET_UNIT_DIRS={FOLDER} {GENERATOR} --dryrun 2>/dev/null")


def value(text, key):
    """The value of a key that stands there once."""
    (found,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]
    return found


def test_the_command_line_comes_out_word_by_word(generated, quadlet):
    words = container.arguments(generated, value(quadlet, "Image"))
    assert words == shlex.split(value(quadlet, "Exec"))
    assert words[:1] == ["-m"]


def test_what_is_allowed_comes_out_whole(generated, quadlet):
    command = shlex.split(value(generated, "ExecStart"))
    options = command[: command.index(value(quadlet, "Image"))]
    joined = " ".join(options)
    for wanted in (
        "--cap-drop all",
        "--security-opt=no-new-privileges",
        "--read-only",
        "--shm-size 16g",
        "--ulimit host",
    ):
        assert wanted in joined
    assert f"--stop-timeout={container.STOP_S}" in joined or f"--stop-timeout {container.STOP_S}" in joined
    assert ("--device nvidia.com/gpu=all" in joined) == ("AddDevice" in quadlet)
    assert ("--cap-add sys_nice" in joined) == ("AddCapability" in quadlet)


def test_systemd_understands_what_comes_out(node, generated):
    unit = generated.partition("---\n")[2]
    sandbox.execute(
        node.name, "install", "-m", "644", "/dev/stdin", f"{FOLDER}/llama-server-qwen.service", stdin=unit
    )
    # The programs of a service are not on every node.
    node.run(f"sed -i 's,/usr/local/libexec/moehost/[a-z-]*,/bin/true,' {FOLDER}/llama-server-qwen.service")
    said = node.run(
        f"systemd-analyze verify {FOLDER}/llama-server-qwen.service 2>&1 | grep llama-server-qwen || true"
    )
    assert said == ""
