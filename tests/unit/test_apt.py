"""Which of a node's files would quarrel with a source of ours."""

import pytest

from moehost.apt import AptSource, conflicts

CUDA = AptSource("cuda", "https://nvidia.home.arpa/repos/debian13", "/", (), "https://nvidia.home.arpa/key", "A" * 40)
LIST, SOURCES = "/etc/apt/sources.list.d/theirs.list", "/etc/apt/sources.list.d/theirs.sources"
THEIR_KEY = "/usr/share/keyrings/cuda-archive-keyring.gpg"


def deb822(**fields):
    """A stanza with these fields instead of the usual ones; None is without."""
    stanza = {
        "Types": "deb",
        "URIs": "https://nvidia.home.arpa/repos/debian13/",
        "Suites": "/",
        "Signed-By": THEIR_KEY,
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    return "".join(f"{name}: {value}\n" for name, value in stanza.items() if value is not None)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (LIST, f"deb [signed-by={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13/ /\n"),
        (LIST, f"# NVIDIA\n  deb [ arch=amd64 signed-by={THEIR_KEY} ] https://nvidia.home.arpa/repos/debian13 /\n"),
        (LIST, f"deb-src [Signed-By={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13 /"),
        ("/etc/apt/sources.list", f"deb [signed-by={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13/ /\n"),
        (SOURCES, deb822()),
        (SOURCES, deb822(Enabled="yes")),
        (SOURCES, deb822(URIs="https://other.home.arpa https://nvidia.home.arpa/repos/debian13")),
        ("/etc/apt/sources.list.d/nvidia.list", "deb https://nvidia.home.arpa/repos/debian13/ /\n"),
        (SOURCES, deb822(Signed_By=None)),
        (SOURCES, "# theirs\n" + deb822(URIs="https://other.home.arpa") + "\n" + deb822()),
        (SOURCES, deb822().replace("Signed-By: ", "signed-by:\n ")),
        (SOURCES, deb822(Signed_By="\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc")),
    ],
)
def test_another_key_for_the_same_source(path, text):
    assert conflicts(CUDA, {path: text}) == [path]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (LIST, f"# deb [signed-by={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13/ /\n"),
        ("/etc/apt/sources.list", "deb https://nvidia.home.arpa/repos/debian13/ /\n"),
        ("/etc/apt/sources.list.d/cuda.list", "deb https://nvidia.home.arpa/repos/debian13/ /\n"),
        (LIST, f"deb [signed-by={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13-tools/ /\n"),
        (LIST, f"deb [signed-by={THEIR_KEY}] https://nvidia.home.arpa/repos/debian13 trixie main\n"),
        (LIST, f"deb [signed-by={CUDA.keyring}] https://nvidia.home.arpa/repos/debian13/ /\n"),
        (SOURCES, deb822(Enabled="no")),
        ("/etc/apt/sources.list.d/cuda.sources", deb822(Signed_By=None)),
        (SOURCES, deb822(Signed_By=CUDA.keyring)),
        (SOURCES, deb822(Suites="trixie")),
        (SOURCES, deb822(URIs="https://nvidia.home.arpa/repos/debian12")),
        (SOURCES, deb822().replace("URIs", "#URIs")),
        (SOURCES, "# https://nvidia.home.arpa/repos/debian13\n"),
        (SOURCES, ""),
    ],
)
def test_what_apt_puts_up_with(path, text):
    assert conflicts(CUDA, {path: text}) == []


def test_only_the_file_in_question_is_named():
    files = {LIST: "deb http://debian.home.arpa trixie main\n", SOURCES: deb822(), CUDA.path: ""}
    assert conflicts(CUDA, files) == [SOURCES]
