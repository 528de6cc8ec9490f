"""The engine of the virtual node and its image, made natively in a sandbox with the node's processor and accounts.

Under emulation a build and an image take half an hour. What decides over them is the same here and there: suite,
compiler, the flags of the processor, the builder's numbers. So the node's own deploy finds both made, under names
that it works out by itself, or it would make them.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from moehost import sandbox
from tests.engine_node.test_image import ROLE, STORAGE
from tests.fixtures.node import ROOT, changes
from tests.stand_in import repository

BAKER = "moehost-vm-baker"
URL = "/srv/git/engine"
ENGINE = "/opt/moehost/engine"
IMAGE = "localhost/moehost/ik_llama"


def bring(node: Any, folder: Path) -> dict[str, Any]:
    """Make engine and image for the node, put them where its deploy looks, and return the settings of the engine."""
    commits = repository.make(folder / "engine")
    settings = {"url": URL, "commit": commits["good"], "cuda": "off", "image": {}, "canary_share": 0}
    # One that a killed run has left is half made.
    sandbox.down(BAKER)
    sandbox.up(BAKER, print)
    try:
        _like(node)
        sandbox.execute(BAKER, "mkdir", "-p", URL)
        subprocess.run(["podman", "cp", f"{folder}/engine/.", f"{BAKER}:{URL}"], check=True)
        _deploy(folder, settings)
        release = sandbox.execute(BAKER, "readlink", f"{ENGINE}/next").strip().rpartition("/")[2]
        parts = f"tar -C {ENGINE} -c releases/{release} proof.gguf"
        _send(node, parts, f"mkdir -p {ENGINE} && tar -C {ENGINE} -x")
        _send(node, f"podman save --quiet --format oci-archive {IMAGE}:{release}", "podman load --quiet")
    finally:
        sandbox.down(BAKER)
    return settings


def _like(node: Any) -> None:
    """Give the sandbox what decides over the names: the node's processor, and the numbers of its builder."""
    user, group = node.run("id -u moehost-build; id -g moehost-build").split()
    commands = f"""\
cat >/srv/cpuinfo && mount --bind /srv/cpuinfo /proc/cpuinfo
groupadd --system --gid {group} moehost-build
useradd --system --uid {user} --gid {group} --home-dir /var/lib/moehost-build --shell /usr/sbin/nologin moehost-build
apt-get -qq update && apt-get -qq --no-install-recommends install podman crun fuse-overlayfs >/dev/null
"""
    sandbox.execute(BAKER, "sh", "-ec", commands, stdin=node.run("cat /proc/cpuinfo") + "\n")
    sandbox.execute(BAKER, "install", "-D", "/dev/stdin", "/etc/containers/storage.conf", stdin=STORAGE)


def _deploy(folder: Path, engine: dict[str, Any]) -> None:
    inventory, program = folder / "baker.py", folder / "deploy.py"
    inventory.write_text(f"nodes = [({'@podman/' + BAKER!r}, {{'engine': {engine!r}}})]\n")
    program.write_text(ROLE)
    done = subprocess.run(
        ["pyinfra", str(inventory), str(program), "--yes", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert changes(done)


def _send(node: Any, packed: str, unpacked: str) -> None:
    with subprocess.Popen(["podman", "exec", BAKER, "sh", "-c", packed], stdout=subprocess.PIPE) as source:
        subprocess.run([*node.machine.ssh, unpacked], stdin=source.stdout, check=True, capture_output=True)
    assert source.returncode == 0
