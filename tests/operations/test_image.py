"""How a node comes to have the image of its next release, from every state that it may be in."""

import json
import re

import pytest

from moehost.images import REPOSITORY
from tests.operations.image_node import (
    BUILD,
    COMMIT,
    CUDA,
    FOLDER,
    ON_CUDA,
    RELEASE,
    RUNTIME,
    listed,
    run,
    texts,
)


def names(commands):
    """Commands by what they are for."""
    found = []
    for each in commands:
        match each:
            case {"command": text}:
                found.append(text.rpartition("/")[2])
            case [function, arguments, _]:
                found.append(f"{function} {arguments[0]}" if function == "watch" else function)
            case text:
                found.append(re.sub(r"^systemctl stop.*cp -a", "copy", text).split()[0])
    return found


@pytest.fixture(scope="module")
def job():
    """What the image is made from, as a fresh node is told."""
    commands, _ = run()
    return json.loads(texts(commands)["image.json"])


@pytest.fixture(scope="module")
def made(job):
    """The node once its image is made."""
    images = [listed(f"{REPOSITORY}:{RELEASE}", job["recipe"]), listed(job["base"])]
    return {"images": json.dumps(images)}


def test_a_fresh_node(job):
    commands, _ = run()
    assert names(commands) == [
        "copy",
        "Containerfile",
        "build.sh",
        "bake.py",
        "prove.py",
        "image.json",
        "job.json",
        "upload",
        "systemd-run",
        f"watch image {RELEASE}",
    ]
    assert (job["reference"], job["chroot"], job["jobs"]) == (f"{REPOSITORY}:{RELEASE}", False, 16)
    assert job["base"].startswith("localhost/moehost/base:trixie-")
    assert job["build"]["commit"] == COMMIT


@pytest.mark.parametrize("build", ["", '{"source": "package"}', json.dumps(BUILD | {"commit": "0" * 40})])
def test_the_plan_of_a_node_that_has_the_release_not_yet(build):
    commands, _ = run({"build": build})
    assert commands == [f"grep --quiet {COMMIT} /opt/moehost/engine/next/build.json"]


def test_an_image_that_is_there_is_left_alone(made):
    commands, noops = run(made)
    assert (commands, noops) == ([], [f"{REPOSITORY}:{RELEASE} is there"])


def test_what_it_needs_is_installed_and_checked_out_first():
    commands, _ = run(missing=["podman"], checked_out="")
    assert commands[0] == "apt-get update"
    assert commands[1].endswith("install --no-install-recommends podman")
    assert commands[2].startswith("systemctl stop moehost-checkout.service")
    assert commands[4].startswith("systemctl stop moehost-image.service")


def test_a_base_that_is_pulled_needs_no_mmdebstrap():
    asked = []
    run(missing=lambda packages: asked.extend(packages) or [], base=CUDA)
    assert asked == ["podman"]


@pytest.mark.parametrize("wish", [{"base": CUDA}, {"runtime": RUNTIME}])
def test_another_base_makes_another_image(made, wish):
    commands, _ = run(made, **wish)
    assert f"watch image {RELEASE}" in names(commands)


def test_another_container_file_makes_another_image(made):
    changed = {**made, "images": made["images"].replace('"moehost.recipe": "', '"moehost.recipe": "x')}
    assert f"watch image {RELEASE}" in names(run(changed)[0])


def test_a_build_that_is_at_work_is_watched(job):
    title = f"image {RELEASE} {job['recipe']}"
    commands, _ = run(build={"state": "active", "release": title})
    assert names(commands) == [f"watch image {RELEASE}"]


@pytest.mark.parametrize("state", [{"state": "failed"}, {"state": "active", "release": "image of something else"}])
def test_a_build_that_failed_or_makes_something_else_is_begun_anew(job, state):
    commands, _ = run(build={"release": f"image {RELEASE} {job['recipe']}", **state})
    assert names(commands)[0] == "copy"
    assert commands[0].startswith("systemctl stop moehost-image.service 2>/dev/null;")


def test_the_unit_is_the_last_in_every_queue_and_sees_no_key():
    (unit,) = (each for each in run()[0] if isinstance(each, str) and each.startswith("systemd-run"))
    for option in ("Nice=19", "IOWeight=10", "OOMScoreAdjust=1000", "MemoryMax=32768M", "MemorySwapMax=0"):
        assert f"--property={option} " in unit
    assert "--property=InaccessiblePaths=-/etc/moehost" in unit
    assert "--no-block" in unit
    assert unit.endswith(f" python3 {FOLDER}/bake.py {FOLDER}")


def test_a_node_that_is_a_container_starts_none():
    assert json.loads(texts(run({"container": "lxc\n"})[0])["image.json"])["chroot"] is True


def test_the_proof_is_that_of_the_release():
    job = json.loads(texts(run()[0])["job.json"])
    assert (job["commit"], job["build_number"], job["architectures"], job["vnni"]) == (COMMIT, 4840, [], True)
    assert (job["cuobjdump"], job["driver_stub"], job["gpu_layers"]) == (None, None, None)
    job = json.loads(texts(run({"build": json.dumps(ON_CUDA)}, base=CUDA)[0])["job.json"])
    assert (job["architectures"], job["cuobjdump"]) == (["120"], "/usr/local/cuda/bin/cuobjdump")
    assert job["driver_stub"] == "/usr/local/cuda/lib64/stubs/libcuda.so"


def test_cuda_needs_an_image_that_has_it():
    commands, _ = run({"build": json.dumps(ON_CUDA)})
    ((refused, (reason,), _),) = commands
    assert refused == "_refused"
    assert reason.startswith("engine.image.base: the release is built for CUDA")


def test_a_system_without_a_mirror_is_refused():
    ((refused, (reason,), _),) = run({"archives": ""})[0]
    assert (refused, reason) == (
        "_refused",
        "engine.image.base: no root file system can be made on Debian, apt has no mirror of trixie there; "
        "name an image by digest",
    )


def test_an_image_is_pushed_when_it_was_not(made):
    commands, _ = run(made, push="compute.home.arpa/ik")
    address = f"compute.home.arpa/ik:{RELEASE}"
    (push,) = commands
    assert f"podman push --quiet --digestfile /var/lib/moehost-image/pushed/.digest id-1 docker://{address} " in push
    assert push.endswith(f"mv -T /var/lib/moehost-image/pushed/.new /var/lib/moehost-image/pushed/{RELEASE}")


def test_an_image_is_pushed_once(made):
    pushed = {"pushed": f"{RELEASE} compute.home.arpa/ik:{RELEASE} id-1 sha256:f00\n"}
    assert run({**made, **pushed}, push="compute.home.arpa/ik")[0] == []


def test_an_image_is_pushed_after_it_is_made(made):
    commands, _ = run({}, made, push="compute.home.arpa/ik")
    assert names(commands)[-2:] == [f"watch image {RELEASE}", "install"]


def test_what_belongs_to_no_release_goes(made):
    old = [listed(f"{REPOSITORY}:gone-1"), listed("localhost/moehost/base:before"), listed("localhost/others:1")]
    state = {
        "images": json.dumps([*json.loads(made["images"]), *old]),
        "pushed": "gone-1 compute.home.arpa/ik:gone-1 id-0 sha256:f00\n",
        "leftovers": "gone-2\n",
    }
    commands, _ = run(state)
    assert commands == [
        f"podman rmi {REPOSITORY}:gone-1 localhost/moehost/base:before",
        "rm -rf /var/lib/moehost-image/pushed/gone-1 /var/lib/moehost-image/gone-2",
    ]


def test_the_folder_of_a_build_goes_after_it(made):
    commands, _ = run({}, {**made, "leftovers": f"{RELEASE}\n"})
    assert commands[-1] == f"rm -rf {FOLDER}"
