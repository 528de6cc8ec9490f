"""What is done to have a release of the engine, from every state that a node may be in."""

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import recipe, toolchain
from moehost.settings_engine import Engine
from roles.facts import FileStates, MissingPackages, OsRelease
from roles.ik_llama import build
from roles.ik_llama.build import checkout, release
from roles.ik_llama.facts import Build, Checkout, PackageCandidates, Releases, Toolchain
from tests.operations.plain import in_turn, play
from tests.unit.test_toolchain import NOTHING, TEXTS

COMMIT = Engine().commit
WITHOUT_CARDS = {**TEXTS, "nvcc": "", "cards": "", "pci": ""}
WITHOUT_TOOLS = {**WITHOUT_CARDS, "compiler": "", "missing": "cmake\nninja-build\n"}
NONE = Releases.default()
CHECKED_OUT = {"commit": COMMIT, "build_number": "4840"}
DONE = {"state": "inactive", "release": build.UNIT, "result": "success", "steps": "168/168", "done": "912"}


def name(texts=WITHOUT_CARDS, cuda=None, architectures=(), **engine):
    chain = toolchain.parse(texts)
    cuda = toolchain.choose(chain, architectures, None) if architectures else None
    return recipe.make(Engine(**engine), chain, cuda, architectures).release


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """The small model is a matter of its own, and takes a second to make."""
    monkeypatch.setattr(build, "small_model", lambda to: iter(()))
    # It has tests of its own.
    monkeypatch.setattr(build.cuda_toolkit, "_inner", lambda **wanted: iter([f"CUDA toolkit {wanted['version']}"]))


def run(*texts, releases=NONE, commit=CHECKED_OUT, builds=(DONE,), **engine):
    facts = {
        Toolchain: in_turn(*texts),
        Releases: releases,
        Checkout: in_turn(commit, CHECKED_OUT),
        Build: in_turn(*builds),
        MissingPackages: lambda packages: ["cmake", "ninja-build"],
        OsRelease: {"ID": "ubuntu", "VERSION_ID": "24.04", "VERSION_CODENAME": "noble"},
        PackageCandidates: {},
        FileStates: {},
        DebPackages: {},
    }
    return play(release, facts, engine=Engine(**engine))


def test_a_release_that_is_there_is_left_alone():
    there = {**NONE, "releases": [name()], "next": name(), "current": name()}
    commands, noops = run(WITHOUT_CARDS, releases=there)
    assert (commands, noops) == ([], [f"release {name()} is next"])


def test_one_that_was_built_before_becomes_the_next_without_a_build():
    there = {**NONE, "releases": ["other", name()], "next": "other", "current": "other"}
    commands, _ = run(WITHOUT_CARDS, releases=there)
    assert [command.split()[-1] for command in commands] == [
        "/opt/moehost/engine/next.new",
        "/opt/moehost/engine/next",
    ]


def test_a_fresh_node_gets_tools_and_source_and_builds():
    idle = {"state": "inactive", "release": build.UNIT, "result": "success"}
    commands, _ = run(WITHOUT_TOOLS, WITHOUT_CARDS, commit={}, builds=(idle,))
    text = str(commands)
    order = [
        "apt-get update",
        "ninja-build",
        "moehost-checkout",
        "/run/moehost-build.sh",
        "--unit=moehost-build.service",
        "watch",
        "runuser -u moehost-build -- cat",
        "_proven",
        "/opt/moehost/engine/next",
    ]
    assert sorted(order, key=text.index) == order


def test_a_build_that_a_deploy_left_behind_is_watched_on():
    at_work = {"state": "active", "release": name(), "result": "success", "steps": "20/168", "done": ""}
    commands, _ = run(WITHOUT_CARDS, builds=(at_work,))
    assert commands[0][0] == "watch"


def test_a_build_of_something_else_makes_room():
    other = {
        "state": "active",
        "release": "ffffffffffff-00000000",
        "result": "success",
        "steps": "20/168",
        "done": "",
    }
    commands, _ = run(WITHOUT_CARDS, builds=(other,))
    assert "systemctl stop moehost-build.service" in commands[0]["command"]


def test_a_build_that_is_done_is_proven():
    commands, _ = run(WITHOUT_CARDS)
    assert "watch" not in str(commands)
    assert "_proven" in str(commands)


def test_the_proof_is_told_what_to_expect():
    commands, _ = run(TEXTS)
    _, (made, job, identity), _ = next(each for each in commands if each[0] == "_proven")
    assert job.programs == f"/opt/moehost/engine/releases/.{made.release}/bin"
    assert (job.commit, job.build_number, job.architectures) == (COMMIT, 4840, ["120"])
    assert job.vnni and job.cuobjdump == "/usr/local/cuda-12.9/bin/cuobjdump"
    # One of the cards has a GiB free only.
    assert job.gpu_layers == 0
    assert identity["cuda_path"] == "/usr/local/cuda-12.9"


def test_the_build_finds_the_toolkit():
    idle = {"state": "inactive", "release": build.UNIT, "result": "success"}
    commands, _ = run(TEXTS, builds=(idle,))
    assert "CUDACXX=/usr/local/cuda-12.9/bin/nvcc CUDAToolkit_ROOT=/usr/local/cuda-12.9" in str(commands)


REFUSED = {
    "a card without a driver": ({**TEXTS, "cards": ""}, {}, "engine: the node has 2 NVIDIA card(s), but nvidia-smi"),
    "cuda without a card": (NOTHING, {"cuda": "on"}, "engine: engine.cuda is 'on', but nvidia-smi names no card"),
    "a version that will not do": (TEXTS, {"cuda_version": "12.4"}, "engine: CUDA 12.4 makes no code for compute"),
}


@pytest.mark.parametrize(("texts", "engine", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(texts, engine, reason):
    ((function, (said,), _),), _ = run(texts, **engine)
    assert function == "_refused"
    assert said.startswith(reason)


def test_a_toolkit_that_miscompiles_is_not_used_and_named():
    bad = {**TEXTS, "nvcc": "/usr/local/cuda-13.2 Cuda compilation tools, release 13.2, V13.2.51 Build x\n"}
    commands, _ = run(bad, cuda_version="13.2")
    assert "CUDA toolkit 13.2" in commands
    function, (said,), _ = commands[-1]
    assert function == "_refused"
    assert "engine.cuda_version: no CUDA toolkit that will do; on the node: 13.2.51 (CUDA 13.2.51 computes" in said


def test_a_checkout_stops_what_is_left_of_one_before():
    commands, _ = play(checkout, {Checkout: {}}, url="/srv/git/engine", commit=COMMIT)
    assert commands[0] == "systemctl stop moehost-checkout.service 2>/dev/null; true"
    assert f"sh -s -- /srv/git/engine {COMMIT} /var/lib/moehost-build/source" in commands[1]["command"]
    assert "--property=User=moehost-build" in commands[1]["command"]
