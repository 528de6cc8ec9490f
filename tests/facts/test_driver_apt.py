"""Real apt with the preferences of toolkit and driver: what may come from NVIDIA's repository, and what not.

The repository is an index of packages that nobody could install; names are those of NVIDIA's repository for Debian.
"""

import os
import shutil
import subprocess

import pytest
from pyinfra.api import StringCommand

from moehost.apt import key_of
from moehost.driver import parse
from moehost.driver_packages import choose, of_apt, suites_without_contrib
from roles.ik_llama.facts import PackageCandidates
from roles.nvidia_driver.facts import Offer, Unmet
from roles.operations import render
from tests.fixtures.driver import debian

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")

# Each package of a branch, and what it depends on.
DRIVER = {
    "nvidia-driver-cuda": "libcuda1 (= {v}), libnvidia-ml1 (= {v}), nvidia-persistenced (= {v})",
    "nvidia-kernel-open-dkms": "nvidia-kernel-support (= {v}), firmware-nvidia-gsp (= {v}), nvidia-installer-cleanup",
    "nvidia-kernel-support": "nvidia-modprobe (= {v})",
    "nvidia-open": "nvidia-driver-cuda (>= {v}), nvidia-kernel-open-dkms (>= {v})",
    **dict.fromkeys(["libcuda1", "libnvidia-ml1", "nvidia-persistenced", "nvidia-modprobe"], ""),
    "firmware-nvidia-gsp": "",
}
OTHERS = {"cuda-drivers": "nvidia-open", "cuda-toolkit-13-1": "", "cuda-nvcc-13-1": "", "nsight-systems": ""}
BRANCHES = {"580": "580.95.05-1", "595": "595.58.03-1", "610": "610.43.02-1"}


class Apt:
    """An apt of its own in a folder."""

    def __init__(self, folder):
        self.folder = folder
        for each in ("etc/apt/preferences.d", "etc/apt/sources.list.d", "archives/partial"):
            (folder / each).mkdir(parents=True)
        (folder / "status").touch()
        config = (
            f'Dir::Etc "{folder}/etc/apt"; Dir::State::status "{folder}/status";\n'
            f'Dir::State::lists "{folder}/lists"; Dir::Cache "{folder}";\n'
            'APT::Architecture "amd64"; APT::Architectures { "amd64"; };\n'
            'APT::Sandbox::User ""; Debug::NoLocking "1"; Acquire::Languages "none";\n'
        )
        (folder / "apt.conf").write_text(config)

    def archive(self, name, release, packages):
        """An archive with packages: (name, version, what it depends on)."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        stanzas = (
            f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nDescription: stand-in\n"
            f"Filename: {package}.deb\nSize: 1\nSHA256: {'0' * 64}\n" + (f"Depends: {needs}\n" if needs else "")
            for package, version, needs in packages
        )
        (place / "Packages").write_text("\n".join(stanzas))
        (place / "Release").write_text(release)

    def source(self, name, line):
        """A source of it."""
        (self.folder / f"etc/apt/sources.list.d/{name}.list").write_text(f"deb [trusted=yes] {line}\n")

    def prefer(self, name, text):
        """A file of preferences."""
        (self.folder / f"etc/apt/preferences.d/{name}").write_text(text)

    def run(self, command):
        """What a command prints."""
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf")}
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def update(self):
        """Read the lists, all of them: an index without a hash in its Release counts as unchanged."""
        self.run(f"rm -rf {self.folder}/lists && mkdir -p {self.folder}/lists/partial && apt-get update")

    def ask(self, fact, **arguments):
        """What a fact says."""
        lines = self.run(StringCommand(fact().command(**arguments)).get_raw_value()).splitlines()
        return fact().process(lines) if lines else fact().default()

    def candidates(self, *names):
        """The versions that apt would install."""
        return self.ask(PackageCandidates, packages=list(names))

    def have(self, packages):
        """Packages that are installed."""
        stanzas = (
            f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: nobody\nDescription: stand-in\n"
            for name, version in packages.items()
        )
        (self.folder / "status").write_text("\n".join(stanzas))


@pytest.fixture
def apt(tmp_path):
    """NVIDIA's repository with three branches, and a Debian whose contrib has a part that one needs."""
    apt = Apt(tmp_path)
    driver = [
        (name, version, needs.format(v=version)) for version in BRANCHES.values() for name, needs in DRIVER.items()
    ]
    pins = [(f"nvidia-driver-pinning-{branch}", version, "") for branch, version in BRANCHES.items()]
    others = [(name, "13.1.0-1", needs) for name, needs in OTHERS.items()]
    apt.archive("nvidia", "Origin: NVIDIA\nLabel: NVIDIA CUDA\n", [*driver, *pins, *others])
    apt.source("moehost-cuda", f"file:{tmp_path}/nvidia /")
    debian = "Origin: Debian\nLabel: Debian\nCodename: trixie\nSuite: stable\nComponents: main contrib\n"
    apt.archive("debian/dists/trixie", debian, [])
    main = [("linux-headers-amd64", "6.12.57-1", ""), ("nvidia-modprobe", "550.163.01-1", "")]
    apt.archive("debian/dists/trixie/main/binary-amd64", "", main)
    apt.archive("debian/dists/trixie/contrib/binary-amd64", "", [("nvidia-installer-cleanup", "20240109", "")])
    apt.source("debian", f"file:{tmp_path}/debian trixie main contrib")
    apt.prefer("60-moehost-cuda", render("ik_llama/cuda.preferences.j2"))
    apt.update()
    return apt


def allow(apt, branch):
    apt.prefer("60-moehost-nvidia-driver", render("nvidia_driver/driver.preferences.j2", branch=branch))


def test_without_the_drivers_file_no_driver_is_to_be_had(apt):
    assert apt.candidates(*DRIVER, *OTHERS, "nvidia-driver-pinning-580") == {
        "cuda-nvcc-13-1": "13.1.0-1",
        "cuda-toolkit-13-1": "13.1.0-1",
        "nvidia-modprobe": "550.163.01-1",
    }


@pytest.mark.parametrize("branch", ["580", "595"])
def test_with_it_exactly_one_branch_is(apt, branch):
    allow(apt, branch)
    pins = [f"nvidia-driver-pinning-{each}" for each in BRANCHES]
    found = apt.candidates(*DRIVER, *pins, *OTHERS)
    assert {name: found.pop(name) for name in DRIVER} == dict.fromkeys(DRIVER, BRANCHES[branch])
    # The other branches' pins are of their versions, and out of reach; the toolkit is as before.
    assert found.pop(f"nvidia-driver-pinning-{branch}") == BRANCHES[branch]
    assert found == {"cuda-nvcc-13-1": "13.1.0-1", "cuda-toolkit-13-1": "13.1.0-1"}


def test_apt_finds_all_that_the_driver_needs(apt):
    allow(apt, "580")
    offer = apt.ask(Offer)
    choice = choose(parse(debian()), None, of_apt(offer))
    assert choice.packages == (
        "nvidia-driver-pinning-580",
        "nvidia-driver-cuda",
        "nvidia-kernel-open-dkms",
        "linux-headers-amd64",
    )
    assert of_apt(offer).branches == ("610", "595", "580")
    assert apt.ask(Unmet, packages=list(choice.packages)) == []
    simulated = apt.run(f"apt-get install --simulate {' '.join(choice.packages)} | grep ^Inst | cut -d' ' -f2")
    expected = {*DRIVER, *choice.packages, "nvidia-installer-cleanup"} - {"nvidia-open"}
    assert set(simulated.split()) == expected


def test_what_a_missing_component_holds_up_is_said(apt):
    apt.source("debian", f"file:{apt.folder}/debian trixie main")
    apt.update()
    allow(apt, "580")
    (line,) = apt.ask(Unmet, packages=["nvidia-kernel-open-dkms"])
    assert line.startswith("nvidia-kernel-open-dkms : Depends: nvidia-installer-cleanup")
    assert suites_without_contrib(parse(debian()), apt.ask(Offer)) == [("trixie", f"file:{apt.folder}/debian/")]


@pytest.mark.parametrize("key", ["", "/usr/share/keyrings/debian-archive-keyring.gpg"])
def test_a_component_that_is_added_to_a_source_is_used(apt, key):
    option = f"[trusted=yes signed-by={key}]" if key else "[trusted=yes]"
    source = apt.folder / "etc/apt/sources.list.d/debian.list"
    source.write_text(f"deb {option} file:{apt.folder}/debian trixie main\n")
    apt.update()
    suites = suites_without_contrib(parse(debian()), apt.ask(Offer))
    signed = [(*each, key_of(each[1], each[0], {str(source): source.read_text()})) for each in suites]
    assert signed == [("trixie", f"file:{apt.folder}/debian/", key)]
    added = render("nvidia_driver/contrib.sources.j2", suites=signed)
    # The real archive is signed.
    trusted = added.replace("Types: deb\n", "Types: deb\nTrusted: yes\n")
    (apt.folder / "etc/apt/sources.list.d/moehost-contrib.sources").write_text(trusted)
    apt.update()
    allow(apt, "580")
    assert apt.ask(Unmet, packages=["nvidia-kernel-open-dkms"]) == []


def test_a_newer_branch_gives_way(apt):
    allow(apt, "580")
    apt.have(dict.fromkeys(["nvidia-driver-cuda", "libcuda1", "libnvidia-ml1"], BRANCHES["595"]))
    assert apt.candidates("nvidia-driver-cuda", "libcuda1") == dict.fromkeys(
        ["nvidia-driver-cuda", "libcuda1"], BRANCHES["580"]
    )
    assert apt.ask(Unmet, packages=["nvidia-driver-cuda"]) == []


def test_a_package_that_apt_does_not_know(apt):
    assert apt.ask(Unmet, packages=["unheard-of"]) == ["E: Unable to locate package unheard-of"]
