"""A CUDA toolkit from a signed repository on the node's loopback: what comes from it, and what must not.

The packages are stand-ins; apt, its keys and its preferences are real.
"""

import os
import subprocess
from pathlib import Path

import apt_repository
import pytest

from tests.fixtures import node as fixture
from tests.fixtures.node import ROOT, changes

FOLDER, URL = "/srv/nvidia", "http://127.0.0.1:8731"
PLACE = f"{FOLDER}/{apt_repository.PLACE}"
SOURCE = "/etc/apt/sources.list.d/moehost-cuda.sources"
KEYRING = "/usr/share/keyrings/moehost-cuda.gpg"
PREFERENCES = "/etc/apt/preferences.d/60-moehost-cuda"
NO_LISTS = "rm -f /var/lib/apt/lists/127.0.0.1*"
DEPLOY = """
from pyinfra import host
from roles.ik_llama.cuda import cuda_toolkit

cuda_toolkit(name="Have a CUDA toolkit", **host.data.toolkit)
"""


class Node(fixture.Node):
    """The node under test, and deploys of the toolkit alone."""

    fingerprint = ""

    def deploy(self, **toolkit: str) -> subprocess.CompletedProcess[str]:
        """A deploy of the toolkit, with these arguments instead of the repository's."""
        wanted = {"repository": URL, "fingerprint": self.fingerprint} | toolkit
        hosts, deploy = self.folder / "hosts.py", self.folder / "deploy.py"
        hosts.write_text(f"nodes = [({'@podman/' + self.name!r}, {{'toolkit': {wanted!r}}})]\n")
        deploy.write_text(DEPLOY)
        command = ["pyinfra", str(hosts), str(deploy), "--yes", "--json"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def candidates(self, *packages: str) -> list[str]:
        """Those of the packages that apt would install."""
        lines = self.run(f"apt-cache policy {' '.join(packages)}").splitlines()
        return [
            name.rstrip(":")
            for name, _, candidate in zip(lines, lines[1:], lines[2:], strict=False)
            if candidate.startswith("  Candidate:") and "(none)" not in candidate
        ]

    def installed(self) -> list[str]:
        """Those of the repository's packages that are installed."""
        return self.run("dpkg-query -W -f '${Package} ${Version}\\n' | sed -n 's/ 99[.]0-1$//p'").split()

    def state(self) -> str:
        """The files and packages of a deploy."""
        return self.run(f"sha256sum {SOURCE} {KEYRING} {PREFERENCES}") + " ".join(self.installed())

    def clear(self) -> None:
        """Take away all that a deploy brings."""
        self.run(
            f"rm -f {SOURCE} {KEYRING} {PREFERENCES} /var/cache/apt/archives/*_99.0-1_*; {NO_LISTS}; "
            "dpkg-query -W -f '${Package} ${Version}\\n' | sed -n 's/ 99[.]0-1$//p' | xargs -r dpkg --purge"
        )


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The container that ENGINE_NODE names, which has NVIDIA's repository on its loopback, and no gpg."""
    node = Node(os.environ.get("ENGINE_NODE", "moehost-engine"), tmp_path_factory.mktemp("deploy"))
    # gpg is needed to make a key; a node may lack it.
    node.run("apt-get update && apt-get install --yes --no-install-recommends gpg gpg-agent python3")
    script = Path(apt_repository.__file__).name
    subprocess.run(["podman", "cp", apt_repository.__file__, f"{node.name}:/srv/{script}"], check=True)
    node.run(f"rm -rf {FOLDER}")
    node.fingerprint = node.run(f"python3 /srv/{script} {FOLDER}")
    node.run("apt-get purge --yes gpg gpg-agent gpgconf")
    serve = f"python3 -m http.server --bind 127.0.0.1 --directory {FOLDER} {URL.rpartition(':')[2]}"
    node.run(f"systemd-run --quiet --unit=nvidia {serve}")
    node.run("for i in $(seq 100); do ss -Hltn 'sport = :8731' | grep -q . && exit; sleep 0.1; done; exit 1")
    yield node
    node.clear()
    node.run(f"systemctl stop nvidia; rm -rf {FOLDER} /srv/{script}; apt-get update")


@pytest.fixture
def fresh(node):
    """The node without a trace of the repository."""
    node.clear()
    return node


def refusal(deploy: subprocess.CompletedProcess[str], word: str) -> str:
    """The one line with this word that a deploy failed with."""
    assert deploy.returncode == 1
    (line,) = [line for line in deploy.stderr.splitlines() if word in line]
    return line


def test_the_toolkit_comes_and_the_driver_stays_away(fresh):
    assert changes(fresh.deploy()) == ["Have a CUDA toolkit"]
    assert fresh.installed() == [
        "cuda-cccl-13-1",
        "cuda-crt-13-1",
        "cuda-cudart-13-1",
        "cuda-cudart-dev-13-1",
        "cuda-cuobjdump-13-1",
        "cuda-driver-dev-13-1",
        "cuda-nvcc-13-1",
        "cuda-toolkit-13-1-config-common",
        "libcublas-13-1",
        "libcublas-dev-13-1",
        "libnvptxcompiler-13-1",
        "libnvvm-13-1",
    ]
    unwanted = [*apt_repository.DRIVER, *(f"cuda-{each}13-{n}" for each in ("", "runtime-") for n in (1, 3))]
    assert fresh.candidates(*unwanted) == []
    assert fresh.candidates("cuda-nvcc-13-3", "cuda-drivers") == ["cuda-nvcc-13-3"]
    assert changes(fresh.deploy()) == []


def test_another_file_of_preferences_may_allow_more(fresh):
    changes(fresh.deploy())
    allowed = "Package: nvidia-driver-cuda\\nPin: release o=NVIDIA,l=NVIDIA CUDA\\nPin-Priority: 500\\n"
    fresh.run(f"printf '{allowed}' >/etc/apt/preferences.d/90-owner")
    try:
        assert fresh.candidates(*apt_repository.DRIVER) == ["nvidia-driver-cuda"]
    finally:
        fresh.run("rm /etc/apt/preferences.d/90-owner")


def test_a_version_is_chosen_whose_packages_have_other_names(fresh):
    assert changes(fresh.deploy(version="13.3")) == ["Have a CUDA toolkit"]
    assert {"cuda-nvcc-13-3", "cccl-13-3"} <= set(fresh.installed())
    assert changes(fresh.deploy(version="13.3")) == []


def test_a_version_that_is_not_there_is_refused(fresh):
    line = refusal(fresh.deploy(version="12.9"), "cuda-nvcc-12-9")
    assert "cuda-cccl-12-9 or cccl-12-9" in line
    assert "cuda-nvcc is there for 13.1, 13.3" in line
    assert fresh.installed() == []


@pytest.mark.parametrize(
    "lost",
    [
        f"rm {KEYRING}",
        f"truncate -s 200 {KEYRING}; rm {SOURCE}; {NO_LISTS}",
        f"rm {PREFERENCES} {SOURCE}; {NO_LISTS}",
        f"rm {SOURCE}; {NO_LISTS}; dpkg --purge libcublas-dev-13-1",
        f"{NO_LISTS}; dpkg --purge cuda-cuobjdump-13-1",
    ],
    ids=["key", "key cut off", "after the key", "after the preferences", "before the lists"],
)
def test_what_a_run_left_undone_the_next_one_does(node, lost):
    node.deploy()
    whole = node.state()
    node.run(lost)
    assert changes(node.deploy()) == ["Have a CUDA toolkit"]
    assert node.state() == whole
    assert changes(node.deploy()) == []


def test_a_wrong_fingerprint_is_refused_and_nothing_is_installed(fresh):
    line = refusal(fresh.deploy(fingerprint="0" * 40), fresh.fingerprint)
    assert "0" * 40 in line
    assert fresh.installed() == []
    assert fresh.run(f"ls {SOURCE} {KEYRING}* {PREFERENCES} 2>/dev/null || true") == ""


@pytest.fixture
def served(fresh):
    """The folder of the repository, which is put back as it was."""
    fresh.run(f"cp -a {PLACE} {PLACE}.kept")
    yield fresh
    fresh.run(f"rm -rf {PLACE} && mv {PLACE}.kept {PLACE}")


def test_a_key_that_brings_another_one_along_is_refused(served):
    served.run(f"cp {PLACE}/{apt_repository.TWO_KEYS} {PLACE}/{apt_repository.KEY}")
    line = refusal(served.deploy(), "holds the key")
    assert line.count(served.fingerprint) == 2
    assert served.run(f"ls {SOURCE} {KEYRING}* 2>/dev/null || true") == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("sed -i 's/^Date:.*2/&1/' InRelease", "is not signed"),
        ("sed -i 's/^Version: 99/Version: 66/' Packages", "Hash Sum mismatch"),
        ("for each in cuda-nvcc-13-1_*.deb; do cp cuda-drivers_*.deb $each; done", "Hash Sum mismatch"),
    ],
    ids=["signature", "index", "package"],
)
def test_what_is_not_as_it_was_signed_is_not_installed(served, change, complaint):
    served.run(f"cd {PLACE} && {change}")
    failed = served.deploy()
    assert failed.returncode == 1
    assert complaint in failed.stderr
    assert served.installed() == []
    assert served.candidates("cuda-drivers") == []


def test_a_source_of_somebody_else_is_named_and_left_alone(fresh):
    theirs = "/etc/apt/sources.list.d/cuda-debian13-x86_64.list"
    key = "/usr/share/keyrings/cuda-archive-keyring.gpg"
    fresh.run(f"echo 'deb [signed-by={key}] {URL}/{apt_repository.PLACE}/ /' >{theirs}")
    try:
        before = fresh.run(f"cat {theirs}")
        assert theirs in refusal(fresh.deploy(), "with another key")
        assert fresh.run(f"cat {theirs}") == before
        assert fresh.run(f"ls {SOURCE} {KEYRING} 2>/dev/null || true") == ""
    finally:
        fresh.run(f"rm {theirs}")
