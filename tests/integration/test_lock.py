"""`moehost lock` of a node: all of its parts are in it, and what changes is named."""

import json
import subprocess

import pytest

from tests.fixtures.node import ROOT


@pytest.fixture(scope="module")
def locked(node, tmp_path_factory):
    """A lock of the node, and calls that compare with it."""
    folder = tmp_path_factory.mktemp("lock")
    command = ["moehost", "lock", str(node.inventory()), "--folder", str(folder)]

    def call(*arguments):
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)

    done = call()
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.json")
    return call, json.loads(path.read_text())


def test_every_section_has_something(locked, node):
    _, lock = locked
    manifest = json.loads(node.run("cat /srv/models/tiny-qwen35moe/manifest.json"))
    assert lock["system"]["kernel"] == node.run("uname -r")
    assert lock["package"]["systemd"] == node.run("dpkg-query -W -f '${Version}' systemd")
    assert lock["package"]["llama.cpp-tools"] == lock["engine"]["package"]
    assert lock["engine"]["program llama-server"] == node.run("sha256sum </usr/bin/llama-server").split()[0]
    assert lock["model"] == {f"tiny-qwen35moe/{each['name']}": each["sha256"] for each in manifest["files"]}
    assert f"/etc/systemd/system/{node.unit}" in lock["file"]
    assert "/usr/local/libexec/moehost/warm-up" in lock["file"]


def test_no_secret_is_in_it(locked, node):
    _, lock = locked
    assert node.run("cat /etc/moehost/tiny/api-keys").split()[0] not in json.dumps(lock)


def test_nothing_has_drifted(locked):
    call, _ = locked
    done = call("--check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_unit_that_somebody_edits_is_named(locked, node):
    call, _ = locked
    path = f"/etc/systemd/system/{node.unit}"
    node.run(f"cp --preserve {path} /run/kept && echo '# mine' >>{path}")
    try:
        done = call("--check")
    finally:
        node.run(f"cp --preserve /run/kept {path} && rm /run/kept")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert f"file {path}: " in done.stdout
