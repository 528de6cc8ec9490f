"""A node of its own, as a fresh machine is: an SSH server, python3, and a user with a key and sudo, no more."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from moehost import sandbox
from tests.fixtures.node import ROOT

NAME = "moehost-quickstart"
LOGIN = "admin"
MODEL = ROOT / ".sandbox/tiny-qwen35moe.gguf"
PREPARE = f"""
apt-get update --quiet --quiet
apt-get install --yes --quiet --quiet --no-install-recommends openssh-server sudo python3 >/dev/null
useradd --create-home --shell /bin/bash {LOGIN}
echo '{LOGIN} ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/{LOGIN}
install -d -m 700 -o {LOGIN} -g {LOGIN} /home/{LOGIN}/.ssh
install -m 600 -o {LOGIN} -g {LOGIN} /dev/stdin /home/{LOGIN}/.ssh/authorized_keys
"""
# OpenSSH reads the configuration of who runs it, whatever HOME says.
SSH = """\
#!/bin/sh
exec {program} -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={home}/.ssh/known_hosts \\
    -o IdentityFile={home}/.ssh/id_ed25519 -o IdentitiesOnly=yes -o LogLevel=ERROR "$@"
"""


@dataclass(frozen=True)
class Desk:
    """A new user's computer: a home with an SSH key, and a copy of this project."""

    home: Path
    address: str
    fingerprint: str

    @property
    def project(self) -> Path:
        return self.home / "moehost"

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What a command given in the project's folder says; standard error and output as on a terminal."""
        own = {**os.environ, "HOME": str(self.home), "PATH": f"{self.home}/bin:{os.environ['PATH']}", **environment}
        words = ["bash", "-e", "-o", "pipefail", "-c", command]
        together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        return subprocess.run(words, cwd=self.project, env=own, text=True, timeout=900, **together)


def on_node(command: str, text: str | None = None) -> str:
    """What a shell command prints on the node; it must succeed."""
    words = ["podman", "exec", "--interactive", NAME, "sh", "-e", "-c", command]
    done = subprocess.run(words, input=text or "", capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The computer, and the fresh machine that it reaches over SSH."""
    home = tmp_path_factory.mktemp("home")
    for each in (".ssh", "bin"):
        (home / each).mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh/id_ed25519"], check=True)
    (home / "bin/ssh").write_text(SSH.format(program=shutil.which("ssh"), home=home))
    (home / "bin/ssh").chmod(0o755)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().split("\n"):
        if name and (ROOT / name).is_file():
            (home / "moehost" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / "moehost" / name)
    (home / "moehost/.sandbox").mkdir()
    shutil.copy(MODEL, home / "moehost/.sandbox")
    (home / "moehost/.venv").symlink_to(ROOT / ".venv")
    sandbox.down(NAME)
    sandbox.up(NAME, print)
    on_node(PREPARE, (home / ".ssh/id_ed25519.pub").read_text())
    words = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", NAME]
    address = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    fingerprint = on_node("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    yield Desk(home, address, fingerprint)
    sandbox.down(NAME)
