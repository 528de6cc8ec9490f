"""The sandbox: its recipe, this computer's mirror, and what Podman is told on which kind of computer."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from moehost import sandbox

DEBIAN = """\
Packages $(COMPONENT) ./ file:/srv/debian-flat/
Packages main bookworm-security http://mirror.example/debian-security/
Packages main bookworm-updates-security http://mirror.example/debian-wrong/
Packages contrib bookworm http://mirror.example/debian-contrib/
Translations main bookworm http://mirror.example/debian-translations/
Packages main stable https://packages.example/apt/
Packages main bookworm http://mirror.example/debian/
"""
UBUNTU = "Packages main noble http://mirror.example/ubuntu/\n"


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> list[list[str]]:
    """Programs that say what the table says for their words; others fail. Returns the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        for words, answer in answers.items():
            if words in " ".join(command):
                return subprocess.CompletedProcess(command, 0, answer, "")
        return subprocess.CompletedProcess(command, 1, "", "there is no such thing")

    monkeypatch.setattr(sandbox.subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("listing", "mirror"), [(DEBIAN, "http://mirror.example/debian/"), (UBUNTU, None), ("", None)]
)
def test_the_mirror_is_this_computers_debian_one(
    monkeypatch: pytest.MonkeyPatch, listing: str, mirror: str | None
) -> None:
    monkeypatch.delenv("SANDBOX_MIRROR", raising=False)
    answering(monkeypatch, {"apt-get indextargets": listing})
    assert sandbox.mirror() == mirror


def test_a_mirror_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_MIRROR", "http://other.example/debian")
    answering(monkeypatch, {"apt-get indextargets": DEBIAN})
    assert sandbox.mirror() == "http://other.example/debian"


def test_an_image_of_ones_own_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_IMAGE", "localhost/ubuntu:24.04")
    commands = answering(monkeypatch, {})
    assert sandbox.image(lambda _: None) == "localhost/ubuntu:24.04"
    assert commands == []


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_IMAGE", raising=False)
    answering(monkeypatch, {"podman image exists": ""})
    first = sandbox.image(lambda _: None)
    monkeypatch.setattr(sandbox, "PACKAGES", (*sandbox.PACKAGES, "vim"))
    assert sandbox.image(lambda _: None) != first


LIMITS = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096"]


@pytest.mark.parametrize(
    ("version", "capabilities", "arguments"),
    [
        ("v2", "000001ffffffffff", []),
        ("v2", "000001fffeffffff", LIMITS),
        ("v1", "000001ffffffffff", ["--runtime", "runc", *LIMITS]),
        ("v1", "000001fffeffffff", ["--runtime", "runc", *LIMITS]),
    ],
    ids=["an ordinary machine", "without CAP_SYS_RESOURCE", "control groups of version 1", "neither"],
)
def test_podman_is_told_what_this_computer_lacks(
    monkeypatch: pytest.MonkeyPatch, version: str, capabilities: str, arguments: list[str]
) -> None:
    answering(monkeypatch, {"podman info": f"{version}\n"})
    monkeypatch.setattr(sandbox.Path, "read_text", lambda _: f"Name:\tpython3\nCapEff:\t{capabilities}\n")
    assert sandbox.runtime_arguments() == arguments


def test_a_failure_is_one_line_that_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {})
    with pytest.raises(sandbox.SandboxError, match=r"^`podman exec name ...` failed: there is no such thing$"):
        sandbox.execute("name", "true")


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(sandbox.subprocess, "run", run)
    with pytest.raises(sandbox.SandboxError, match="podman is not installed; run `make host-packages`"):
        sandbox.execute("name", "true")
