"""The program that makes an image, with a Podman that only writes down what it is told."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moehost import bake
from moehost.bake import Job, build_json, labels

BUILD = {
    "source": "git",
    "url": "https://git.example/ik",
    "commit": "c" * 40,
    "release": "cccccccccccc-12345678",
    "options": ["GGML_NATIVE=ON", "GGML_CUDA=ON"],
    "architectures": ["120"],
    "build_number": 4840,
    "version": "4840 (ccccccccc)",
}
JOB = Job(
    reference="localhost/moehost/ik_llama:cccccccccccc-12345678",
    recipe="0123456789abcdef",
    base="localhost/moehost/base:trixie-1",
    suite="trixie",
    sources=["deb [signed-by=/k.gpg] http://a.example/debian/ trixie main"],
    chroot=True,
    jobs=16,
    memory_mib=1000,
    ccache="/var/lib/moehost-build/ccache",
    build=BUILD,
)
SAID = {
    "answer.json": json.dumps({"proofs": {"version": "4840 (ccccccc)", "answer": "not asked"}, "failure": None}),
    "compiler": "gcc 13.3.0\n",
    "nvcc": "Cuda compilation tools, release 12.9, V12.9.86\nBuild cuda_12.9.r12.9\n",
    "sums": "00ff  llama-server\n11ee  llama-bench\n",
    "seconds": "912\n",
}
PODMAN = """#!/bin/sh
echo "$*" >>"$CALLS"
for word; do case $word in --iidfile=*) echo "id of ${word##*/}" >"${word#*=}" ;; esac; done
case "$1 $2" in
"image exists") exit ${BASE_IS_MISSING:-0} ;;
"image mount") echo "$CALLS.mounted" ;;
"ps --all") [ -z "$CONTAINERS" ] || echo "$CONTAINERS" ;;
"build --target=$FAILS") echo "[2/2] STEP 3/4: RUN x"; echo "$OUTPUT"; exit 125 ;;
build*) echo "[1/3] STEP 1/4: FROM x"; echo "[3/9] Building y.o" ;;
esac
"""
UNSHARE = '#!/bin/sh\nwhile [ "$1" != podman ]; do shift; done\nprintf "no network: " >>"$CALLS"\nexec "$@"\n'


class Node:
    """A node whose Podman only writes down what it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.calls_file, self.patch = folder / "image", folder / "calls", monkeypatch
        programs = folder / "bin"
        mounted = folder / "calls.mounted/moehost"
        for each in (self.folder, programs, mounted):
            each.mkdir(parents=True)
        for name, text in SAID.items():
            (mounted / name).write_text(text)
        mmdebstrap = '#!/bin/sh\necho "mmdebstrap $*" >>"$CALLS"; >"$4"\n'
        for name, text in (("podman", PODMAN), ("unshare", UNSHARE), ("mmdebstrap", mmdebstrap)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.mounted = mounted
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setenv("CALLS", str(self.calls_file))

    def bake(self, job: Job = JOB, **environment: str) -> int:
        for name, value in environment.items():
            self.patch.setenv(name, value)
        (self.folder / "image.json").write_text(json.dumps(asdict(job)))
        return bake.main(self.folder)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def builds(self) -> dict[str, str]:
        """The call that made each stage."""
        found = (each for each in self.calls if "build --target=" in each)
        return {each.partition("--target=")[2].split()[0]: each for each in found}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_build_json_is_what_the_stage_says_of_itself() -> None:
    found = build_json(JOB, SAID, now=0)
    assert (found["compiler"], found["cuda"], found["duration_s"]) == ("gcc 13.3.0", "12.9.86", 912)
    assert found["version"] == "4840 (ccccccc)"
    assert found["sha256"] == {"llama-server": "00ff", "llama-bench": "11ee"}
    assert found["proofs"] == {"version": "4840 (ccccccc)", "answer": "not asked"}
    assert found["built"] == "1970-01-01T00:00:00Z"
    assert found["options"] == BUILD["options"]


def test_without_cuda_there_is_none() -> None:
    assert build_json(JOB, {**SAID, "nvcc": ""}, now=0)["cuda"] is None


def test_a_server_that_was_not_started_has_the_version_of_the_release() -> None:
    answer = json.dumps({"proofs": {"version": "not started: there is no driver"}, "failure": None})
    found = build_json(JOB, {**SAID, "answer.json": answer}, now=0)
    assert found["version"] == BUILD["version"]
    assert found["proofs"]["version"] == "not started: there is no driver"


def test_labels_are_texts_as_they_are_and_json_for_the_rest() -> None:
    found = labels(build_json(JOB, {**SAID, "nvcc": ""}, now=0), "0123")
    assert found == {
        "moehost.release": BUILD["release"],
        "moehost.commit": "c" * 40,
        "moehost.build_number": "4840",
        "moehost.version": "4840 (ccccccc)",
        "moehost.options": '["GGML_NATIVE=ON", "GGML_CUDA=ON"]',
        "moehost.compiler": "gcc 13.3.0",
        "moehost.cuda": "null",
        "moehost.architectures": '["120"]',
        "moehost.recipe": "0123",
        "org.opencontainers.image.revision": "c" * 40,
        "org.opencontainers.image.source": "https://git.example/ik",
        "org.opencontainers.image.version": "4840 (ccccccc)",
    }


def test_stages_in_order_and_the_name_last(node: Node) -> None:
    assert node.bake() == 0
    assert list(node.builds()) == ["tools", "runtime", "build", "final"]
    assert [stage for stage, call in node.builds().items() if f"--tag={JOB.reference}" in call] == ["final"]
    assert "--label=moehost.compiler=gcc 13.3.0" in node.builds()["final"]
    assert json.loads((node.folder / "build.json").read_text())["compiler"] == "gcc 13.3.0"
    assert (node.folder / "done").read_text().strip().isdecimal()


def test_only_packages_come_over_a_network(node: Node) -> None:
    node.bake()
    without = [stage for stage, call in node.builds().items() if call.startswith("no network: ")]
    assert without == ["build", "final"]
    node.bake(replace(JOB, chroot=False))
    networks = {stage: call.partition("--network=")[2].split()[0] for stage, call in node.builds().items()}
    assert networks == {"tools": "host", "runtime": "host", "build": "none", "final": "none"}


def test_a_container_gets_the_limits_of_the_unit_and_a_chroot_has_them(node: Node) -> None:
    node.bake(replace(JOB, chroot=False))
    assert "--isolation" not in node.builds()["build"]
    assert "--memory=1000m --memory-swap=1000m --cpu-shares=10" in node.builds()["build"]
    node.bake()
    assert "--isolation=chroot" in node.builds()["build"]
    assert "--memory" not in node.builds()["build"]


def test_the_cache_of_the_node_is_only_read(node: Node) -> None:
    node.bake()
    assert "--volume=/var/lib/moehost-build/ccache:/ccache:ro --build-arg=JOBS=16" in node.builds()["build"]
    assert "ccache" not in node.builds()["tools"]


def test_a_base_is_made_once(node: Node) -> None:
    node.bake(BASE_IS_MISSING="1")
    (made,) = [each for each in node.calls if each.startswith("mmdebstrap")]
    archive = f"{node.folder}/base.tar"
    assert made == f"mmdebstrap --variant=minbase --include=ca-certificates trixie {archive} {JOB.sources[0]}"
    assert f"import --quiet --change=LABEL moehost.stage=base {archive} {JOB.base}" in node.calls
    assert not Path(archive).exists()
    node.calls_file.unlink()
    node.bake(BASE_IS_MISSING="0")
    assert not [each for each in node.calls if each.startswith("mmdebstrap")]


def test_a_base_that_is_pulled_is_not_made(node: Node) -> None:
    node.bake(replace(JOB, base="docker.io/x@sha256:0", suite="", sources=[]), BASE_IS_MISSING="1")
    assert not [each for each in node.calls if each.startswith(("mmdebstrap", "import", "image exists"))]


def test_mirrors_in_a_file_of_the_node_are_resolved(node: Node, tmp_path: Path) -> None:
    listing = tmp_path / "debian.list"
    listing.write_text("https://m.example/debian\nhttps://other.example/debian\n")
    source = f"deb [signed-by=/k.gpg] mirror+file:{listing}/ trixie main"
    node.bake(replace(JOB, sources=[source]), BASE_IS_MISSING="1")
    (made,) = [each for each in node.calls if each.startswith("mmdebstrap")]
    assert made.endswith(" deb [signed-by=/k.gpg] https://m.example/debian trixie main")


FAILURES: dict[str, dict[str, Any]] = {
    "a proof": {
        "stage": "build",
        "output": '{"proofs": {}, "failure": "--version says 0 (unknown)"}',
        "line": "no image: the stage build of the image fails: --version says 0 (unknown)",
    },
    "the image that it runs on": {
        "stage": "final",
        "output": "moehost: it lacks libcublas.so.12 => not found",
        "line": "no image: the stage final of the image fails: it lacks libcublas.so.12 => not found",
    },
    "anything else": {
        "stage": "tools",
        "output": "E: Unable to locate package ninja-build",
        "line": "no image: the stage tools of the image fails: exit status 125",
    },
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_a_failure_says_why_and_gives_no_name(node: Node, capfd: pytest.CaptureFixture[str], case: dict) -> None:
    assert node.bake(FAILS=case["stage"], OUTPUT=case["output"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == case["line"]
    assert not (node.folder / "done").exists()
    assert list(node.builds())[-1] == case["stage"]
    assert node.calls[-1].startswith("image prune ")


def test_the_log_has_no_steps_but_those_of_the_build(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    node.bake()
    lines = capfd.readouterr().out.splitlines()
    assert "STEP 1/4: FROM x" in lines
    assert "[3/9] Building y.o" in lines
    assert not [each for each in lines if each.startswith("[") and "STEP" in each]
    assert [each for each in lines if each.startswith("== ")] == [
        f"== gets {JOB.base} and packages",
        "== builds",
        "== puts the image together",
        f"== {JOB.reference} is made",
    ]


def test_before_and_after_only_what_builds_left_is_removed(node: Node) -> None:
    listing = f"1 {JOB.base} buildah\n2 docker.io/library/x:1 buildah\n3 {JOB.base} sleep 9\n4 <none> "
    node.bake(CONTAINERS=listing)
    assert [each for each in node.calls if each.startswith("rm ")] == ["rm --force 1"] * 2
    prunes = [each for each in node.calls if each.startswith("image prune ")]
    assert prunes == ["image prune --force --external --filter=label=moehost.stage"] * 2


def test_a_link_in_the_stage_is_not_followed_to_the_node(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    (node.mounted / "compiler").unlink()
    (node.mounted / "compiler").symlink_to("/etc/hostname")
    assert node.bake() == 1
    assert "no image: " in capfd.readouterr().out.splitlines()[-1]
    assert any(each.startswith("image unmount ") for each in node.calls)
    assert "final" not in node.builds()
