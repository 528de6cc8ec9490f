"""How a node comes to have the image of its next release, from every state that it may be in."""

import json
import re
from importlib import import_module

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import settings
from moehost.images import REPOSITORY
from roles.facts import FileStates, MissingPackages
from roles.ik_llama.facts import Build, Checkout, Images, Toolchain
from roles.ik_llama.image import image
from tests.operations.plain import in_turn, play

COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"
RELEASE = "8337e4cd3861-b1f28538"
FOLDER = f"/var/lib/moehost-image/{RELEASE}"
CUDA = f"docker.io/nvidia/cuda@sha256:{'1' * 64}"
RUNTIME = f"docker.io/nvidia/cuda@sha256:{'2' * 64}"
BUILD = {
    "source": "git",
    "dialect": "ik",
    "url": "https://git.example/ik",
    "commit": COMMIT,
    "options": ["GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF"],
    "compiler": "gcc 14.2.0",
    "isa": ["avx2", "avx512_vnni"],
    "cuda": None,
    "architectures": [],
    "version": "4840 (8337e4cd3)",
    "build_number": 4840,
}
ON_CUDA = BUILD | {"options": ["GGML_CUDA=ON"], "cuda": "12.9.86", "architectures": ["120"]}
TEXTS = {
    "next": f"{RELEASE}\n",
    "build": json.dumps(BUILD),
    "releases": f"{RELEASE}\n",
    "images": "",
    "pushed": "",
    "leftovers": "",
    "system": "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME=Debian\n",
    "archives": "trixie http://mirror.home.arpa/debian/ Debian\n",
    "builder": "995:994\n",
    "container": "none\n",
}
TOOLCHAIN = {
    "compiler": "gcc 14.2.0\n",
    "missing": "",
    "nvcc": "",
    "cards": "",
    "pci": "",
    "cpu_flags": "flags : avx2\n",
    "cores": "16\n",
    "available_kib": "MemAvailable: 41943040 kB\n",
}


@pytest.fixture(scope="module", autouse=True)
def model():
    """The small model takes a moment to write, and its upload has no words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("roles.ik_llama.image"), "small_model", lambda to: [f"upload {to}"])
        yield


def listed(name, recipe="", image_id="id-1"):
    """An image as Podman lists it."""
    return {"Id": image_id, "Names": [name], "Labels": {"moehost.recipe": recipe}, "Containers": 0}


def run(*states, build=None, missing=(), checked_out=COMMIT, **wish):
    """The commands and noops on a node whose images are in these states, one after the other."""
    facts = {
        Images: in_turn(*({**TEXTS, **state} for state in states or ({},))),
        Build: build or {},
        MissingPackages: list(missing),
        Checkout: {"commit": checked_out},
        Toolchain: TOOLCHAIN,
        FileStates: {},
        DebPackages: {},
    }
    engine = settings.read({"engine": {"url": "https://git.example/ik", "commit": COMMIT, "image": wish}}).engine
    return play(image, facts, engine=engine)


def texts(commands):
    """The files that a run writes, by name."""
    written = (each for each in commands if isinstance(each, dict) and "_stdin" in each)
    return {each["command"].rpartition("/")[2]: each["_stdin"] for each in written}


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
    facts = {
        Images: TEXTS,
        Build: {},
        MissingPackages: lambda packages: asked.extend(packages) or [],
        Checkout: {"commit": COMMIT},
        Toolchain: TOOLCHAIN,
        FileStates: {},
    }
    play(image, facts, engine=settings.read({"engine": {"commit": COMMIT, "image": {"base": CUDA}}}).engine)
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


@pytest.fixture(scope="module")
def container_file():
    """A function: the Containerfile for a wish."""
    return lambda build=BUILD, **wish: texts(run({"build": json.dumps(build)}, **wish)[0])["Containerfile"]


def stages(text):
    """The lines of each stage."""
    found = re.split(r"^FROM (\S+) AS (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {stage: (origin, lines) for origin, stage, lines in zip(found[::3], found[1::3], found[2::3], strict=True)}


def test_stages_and_what_they_are_made_from(container_file):
    found = stages(container_file(base=CUDA, runtime=RUNTIME))
    origins = {stage: origin for stage, (origin, _) in found.items()}
    assert origins == {"tools": CUDA, "build": "tools", "runtime": RUNTIME, "final": "runtime"}
    found = stages(container_file(base=CUDA))
    assert found["runtime"][0] == CUDA


def test_every_stage_has_the_label_that_it_is_cleaned_up_by(container_file):
    for stage, (_, lines) in stages(container_file()).items():
        assert lines.startswith(f"LABEL moehost.stage={stage}\n")


def test_what_it_builds_runs_as_nobody_of_importance(container_file):
    _, lines = stages(container_file())["build"]
    assert lines.index("USER 995:994") < lines.index("RUN ")
    assert "USER root" not in lines


def test_the_image_is_nobody_s_and_says_nothing_for_the_server(container_file):
    text = container_file(ON_CUDA, base=CUDA)
    assert "HEALTHCHECK" not in text and "LLAMA_ARG" not in text
    _, lines = stages(text)["final"]
    assert re.search(r"^USER 10001:10001$", lines, re.MULTILINE)
    assert lines.endswith('\nENTRYPOINT ["/usr/local/bin/llama-server"]\n')
    assert "ENV" not in lines


def test_a_base_made_here_gets_what_has_become_of_its_packages_and_a_pinned_one_does_not(container_file):
    assert " upgrade && " in stages(container_file())["runtime"][1]
    assert "upgrade" not in container_file(base=CUDA)
    assert "upgrade" not in container_file(runtime=RUNTIME)


def test_paths_are_those_of_the_node(container_file):
    text = container_file()
    assert "source /var/lib/moehost-build/source\n" in text
    assert f" /var/lib/moehost-build/builds/{RELEASE} " in text


def test_cuda_is_where_the_images_of_its_maker_have_it(container_file):
    text = container_file(ON_CUDA, base=CUDA)
    assert "    CUDACXX=/usr/local/cuda/bin/nvcc CUDAToolkit_ROOT=/usr/local/cuda\n" in text
    assert "CUDA" not in container_file()


def test_the_script_is_that_of_the_native_build():
    script = texts(run()[0])["build.sh"]
    assert "'-DGGML_NATIVE=ON'" in script
    assert "Using CUDA architectures" not in script
    on_cuda = texts(run({"build": json.dumps(ON_CUDA)}, base=CUDA)[0])["build.sh"]
    assert "Using CUDA architectures: 120" in on_cuda
