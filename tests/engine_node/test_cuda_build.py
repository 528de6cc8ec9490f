"""A build with CUDA, with the real compiler of this computer if it has one; no card is needed to build.

On a node of its own: the packaged engine of the other one has brought the C library of a newer Debian, which CUDA
does not know yet. The toolkit is put where it would lie, below /usr/local. What it makes can't run on a card here.
"""

import json
import subprocess
from pathlib import Path

import pytest

from moehost import sandbox, toolchain
from tests.engine_node.conftest import URL
from tests.fixtures.node import Node, changes

pytestmark = pytest.mark.stand_in
NAME = "moehost-engine-cuda"
CUDA = {"cuda": "on", "cuda_architectures": ["120"]}


def usable():
    """The newest toolkit of this computer that makes code for a 12.0 card."""
    here = [path.parents[1] for path in Path("/usr/local").glob("cuda-*.*/bin/nvcc")]
    versions = {path: tuple(map(int, path.name.removeprefix("cuda-").split("."))) for path in here}
    return max((path for path, version in versions.items() if version >= (12, 8)), key=versions.get, default=None)


@pytest.fixture(scope="module")
def toolkit():
    if not (path := usable()):
        pytest.skip("this computer has no CUDA toolkit of 12.8 or later")
    return path


@pytest.fixture(scope="module")
def builder(toolkit, engine, tmp_path_factory):
    """A node with that toolkit and the repository, which serves nothing."""
    sandbox.up(NAME, print)
    node = Node(NAME, tmp_path_factory.mktemp("cuda"))
    node.run(f"mkdir -p {toolkit} {URL}")
    subprocess.run(["podman", "cp", f"{toolkit}/.", f"{NAME}:{toolkit}"], check=True)
    subprocess.run(["podman", "cp", f"{engine.source}/.", f"{NAME}:{URL}"], check=True)
    yield node
    sandbox.down(NAME)


def deploy(builder, engine, commit, **more):
    return builder.deploy({"engine": {"url": URL, "commit": engine.commits[commit], **CUDA, **more}})


def releases(builder):
    return builder.run("ls -A /opt/moehost/engine/releases").split()


def test_a_release_with_code_for_a_blackwell_card(builder, engine, toolkit, figures):
    done = deploy(builder, engine, "good")
    assert any("Build ik_llama.cpp" in name for name in changes(done))
    build = json.loads(builder.run("cat /opt/moehost/engine/current/build.json"))
    assert build["cuda_path"] == str(toolkit)
    assert toolchain.Cuda(build["cuda"], "").release >= (12, 8)
    assert build["architectures"] == ["120"]
    assert {"GGML_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=120-real"} <= set(build["options"])
    assert build["proofs"]["gpu_options"] == "in --help"
    tool = builder.run(f"test -x {toolkit}/bin/cuobjdump && echo there || true")
    assert build["proofs"]["device_code"] == ("sm_120" if tool else "not looked at: there is no cuobjdump")
    figures["CUDA"] = f"{build['cuda']} for sm_120 in {build['duration_s']} s"
    assert changes(deploy(builder, engine, "good")) == []


def test_one_that_lost_cuda_is_no_release(builder, engine):
    before = releases(builder)
    done = deploy(builder, engine, "without-gpu")
    assert done.returncode == 1
    assert "is no release: --help has no GPU options, and CUDA is on" in done.stderr
    assert releases(builder) == before


def test_a_toolkit_that_cmake_does_not_use_is_no_build_for_the_cpu(builder, engine):
    """Where upstream only warns, and builds for the CPU."""
    before = releases(builder)
    done = deploy(builder, engine, "better", cmake_options=["GGML_CUDA=OFF"])
    assert done.returncode == 1
    assert "cmake does not find the CUDA toolkit, and without it this would become a build for" in done.stderr
    assert releases(builder) == before
