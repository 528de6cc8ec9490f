"""A CUDA toolkit: where it comes from, what of it, and what is refused."""

import pytest
from pyinfra.facts.deb import DebPackages

from moehost.settings_engine import CUDA_REPOSITORY
from roles.facts import FileStates, MissingPackages, OsRelease, SourceState
from roles.ik_llama.cuda import cuda_toolkit
from roles.ik_llama.facts import PackageCandidates
from tests.operations.plain import in_turn, play

UBUNTU = {"ID": "ubuntu", "VERSION_ID": "24.04", "PRETTY_NAME": "Ubuntu 24.04.3 LTS"}
BOOKWORM = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}
TRIXIE = {"ID": "debian", "VERSION_ID": "13", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"}
OLD_KEY, NEW_KEY = "EB693B3035CD5710E231E123A4B469963BF863CC", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
UPDATE = "apt-get update"


def toolkit(series, cccl="cuda-cccl"):
    """The packages of a toolkit."""
    names = ["cuda-nvcc", "cuda-cudart-dev", cccl, "cuda-driver-dev", "libcublas-dev", "cuda-cuobjdump"]
    return [f"{name}-{series}" for name in names]


def run(system=TRIXIE, apt_has=None, lacks=True, **arguments):
    """What is done on a node whose apt has these packages (a list of lists: before and after it reads its lists)."""
    turns = [dict.fromkeys(names, "99.0-1") for names in apt_has or [toolkit("13-1")]]
    facts = {
        OsRelease: system,
        SourceState: SourceState.default(),
        FileStates: {},
        DebPackages: {},
        PackageCandidates: in_turn(*turns),
        MissingPackages: lambda packages: packages if lacks and "gpg" not in packages else [],
    }
    return play(cuda_toolkit, facts, **arguments)[0]


def texts(commands):
    """Commands without what they read, and refusals as they are."""
    return [each["command"] if isinstance(each, dict) else each for each in commands]


def installed(commands):
    """The packages that the last command installs."""
    _, _, packages = commands[-1].partition(" install --no-install-recommends ")
    return packages.split()


@pytest.mark.parametrize(
    ("system", "folder", "key", "fingerprint", "series"),
    [
        (UBUNTU, "ubuntu2404", "3bf863cc.pub", OLD_KEY, "12-9"),
        (BOOKWORM, "debian12", "3bf863cc.pub", OLD_KEY, "12-9"),
        (TRIXIE, "debian13", "8793F200.pub", NEW_KEY, "13-1"),
    ],
    ids=["ubuntu 24.04", "debian 12", "debian 13"],
)
def test_each_distribution_has_a_repository_a_key_and_a_toolkit(system, folder, key, fingerprint, series):
    commands = run(system, [toolkit(series)])
    fetched, preferences, source, update, _ = texts(commands)
    uri = f"{CUDA_REPOSITORY}/{folder}/x86_64"
    assert fetched == f"sh -s -- {uri}/{key} {fingerprint} /usr/share/keyrings/moehost-cuda.gpg"
    assert preferences.endswith(" /etc/apt/preferences.d/60-moehost-cuda")
    assert source.endswith(" /etc/apt/sources.list.d/moehost-cuda.sources")
    assert f"\nURIs: {uri}\nSuites: /\nSigned-By: " in commands[2]["_stdin"]
    assert update == UPDATE
    assert installed(commands) == toolkit(series)


def test_lists_that_are_older_than_the_source_are_read_before_anything_is_missed():
    commands = texts(run(apt_has=[[], toolkit("13-1")]))
    assert commands[-3:-1] == [UPDATE, UPDATE]
    assert installed(commands) == toolkit("13-1")


def test_a_toolkit_that_is_installed_stays():
    assert not any(" install " in each for each in texts(run(lacks=False))[3:])


def test_a_version_may_be_chosen_and_its_packages_have_other_names():
    assert installed(run(apt_has=[toolkit("13-3", "cccl")], version="13.3")) == toolkit("13-3", "cccl")


def test_a_mirror_with_a_key_of_its_own():
    commands = run(repository="http://mirror.home.arpa/cuda/", fingerprint="A" * 40)
    uri = "http://mirror.home.arpa/cuda/debian13/x86_64"
    assert texts(commands)[0].startswith(f"sh -s -- {uri}/8793F200.pub {'A' * 40} ")
    assert f"\nURIs: {uri}\n" in commands[2]["_stdin"]


def test_a_version_that_is_not_there_is_refused_with_those_that_are():
    *_, (name, (reason,), _) = run(apt_has=[["cuda-nvcc-13-3", "cuda-nvcc-13-1"]], version="12.9")
    assert name == "_refused"
    assert reason == (
        f"engine.cuda_version: {CUDA_REPOSITORY}/debian13/x86_64 has no cuda-nvcc-12-9, cuda-cudart-dev-12-9, "
        "cuda-cccl-12-9 or cccl-12-9, cuda-driver-dev-12-9, libcublas-dev-12-9, cuda-cuobjdump-12-9; "
        "cuda-nvcc is there for 13.1, 13.3"
    )


def test_a_repository_that_says_nothing_is_refused():
    *_, (_, (reason,), _) = run(apt_has=[[]])
    assert reason.endswith("; cuda-nvcc is there for no version, see what `apt-get update` says")


@pytest.mark.parametrize("system", [{"ID": "ubuntu", "VERSION_ID": "22.04", "PRETTY_NAME": "Ubuntu 22.04.5 LTS"}, {}])
def test_another_distribution_is_refused(system):
    ((name, (reason,), _),) = run(system)
    this = system.get("PRETTY_NAME", "this system")
    assert name == "_refused"
    assert reason == (f"moehost knows of no CUDA toolkit for {this}; install one, it is found under /usr/local/cuda*")
