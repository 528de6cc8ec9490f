"""Who may do what on a node: accounts that download, build and serve, and what each of them is kept from.

What units may do is tried from inside of units with the same properties.
"""

import json
import os
import shlex
import subprocess
import time

import pytest

from moehost import confined
from moehost.synthetic import Shape, write
from roles.ik_llama.facts import WORKSHOP
from tests.fixtures.node import ROOT, changes

STORE = "/srv/models"
KEYS = "/etc/moehost/tiny/api-keys"
FETCHER = f"{confined.FETCHER}:{confined.FETCHER}"
# What is whose; a file that others have a name for has their owner.
OWNERS = f"find {STORE} -type d -printf '%u:%g\\n' -o -name '*.json' -printf '%u:%g\\n' | sort -u"


# A deploy of the models alone: no service loads anew for what these tests fetch.
MODELS = """\
from roles.models import models
from roles.node import this_node

if node := this_node():
    models(node)
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


def fetching(node, folder, **model):
    """The command that has a node fetch this model, and nothing else."""
    (folder / "models.py").write_text(MODELS)
    inventory = str(node.inventory(node.changed_settings(model=model)))
    return ["pyinfra", inventory, str(folder / "models.py"), "--yes", "--json"]


def fetched(node, folder, **model):
    """Names of the operations that changed something where the node fetches this model."""
    command = fetching(node, folder, **model)
    return changes(subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True))


def inside(node, properties, script):
    """Exit status and output of a shell script in a unit with these properties."""
    options = " ".join(shlex.quote(f"--property={each}") for each in properties)
    command = f"systemd-run --quiet --wait --pipe --collect {options} sh -c {shlex.quote(script)} 2>&1"
    done = subprocess.run(["podman", "exec", node.name, "sh", "-c", command], capture_output=True, text=True)
    return done.returncode, done.stdout.strip()


UNITS = {
    "fetch from a hub": (confined.fetch(STORE, "network"), "moehost-fetch"),
    "fetch of an upload": (confined.fetch(STORE, "store"), "moehost-fetch"),
    "fetch of a file on the node": (confined.fetch(STORE, "node"), "moehost-fetch"),
    "checkout": (confined.checkout(WORKSHOP), "moehost-build"),
    "build": (confined.build(WORKSHOP), "moehost-build"),
    "prove": (confined.prove(WORKSHOP, has_cards=False), "moehost-build"),
}


@pytest.mark.parametrize("unit", UNITS)
class TestDownloadAndBuild:
    def test_it_runs_as_its_account(self, node, unit):
        properties, user = UNITS[unit]
        assert inside(node, properties, "id -un; grep NoNewPrivs /proc/self/status") == (0, f"{user}\nNoNewPrivs:\t1")

    def test_it_reads_no_keys(self, node, unit):
        """Not even where everybody might, and not with a capability that reads everything."""
        node.run(f"echo secret >/etc/moehost/for-all && chmod 644 /etc/moehost/for-all && test -s {KEYS}")
        try:
            for path in (KEYS, "/etc/moehost/for-all"):
                status, said = inside(node, UNITS[unit][0], f"cat {path}")
                assert status != 0
                assert said.startswith(f"cat: {path}: ")
            assert inside(node, UNITS[unit][0], "ls -A /etc/moehost 2>/dev/null")[1] == ""
        finally:
            node.run("rm /etc/moehost/for-all")

    def test_it_writes_where_it_works_and_nowhere_else(self, node, unit):
        properties, user = UNITS[unit]
        own, other = (STORE, WORKSHOP) if user == "moehost-fetch" else (WORKSHOP, STORE)
        # By its account, and by what it sees of the disk: one folder is for all to write.
        node.run("mkdir -p -m 777 /srv/for-all")
        places = [
            own,
            other,
            "/srv/for-all",
            "/opt/moehost/engine",
            "/usr/local/libexec/moehost",
            "/etc",
            "/var/tmp",
            "/run",
        ]
        script = (
            f"for each in {' '.join(places)}; do touch $each/trial 2>/dev/null && rm $each/trial && echo $each; done"
        )
        # /var/tmp is its own, and gone with it.
        assert inside(node, properties, script)[1].split() == [own, "/var/tmp"]
        node.run("rmdir /srv/for-all")


def test_only_what_needs_a_network_has_one(node):
    found = {name: inside(node, unit[0], "ls /sys/class/net")[1].split() for name, unit in UNITS.items()}
    assert [name for name, links in found.items() if links != ["lo"]] == ["fetch from a hub", "checkout"]


def test_a_fetch_that_is_at_work_is_nobody_of_importance(node, tmp_path):
    """The real one; it is held up by its own lock."""
    write(tmp_path / "waits.gguf", Shape(seed=7))
    subprocess.run(["podman", "cp", str(tmp_path / "waits.gguf"), f"{node.name}:/srv/waits.gguf"], check=True)
    lock = f"{STORE}/.incoming/.waits.lock"
    node.run(f"runuser -u moehost-fetch -- touch {lock}")
    node.run(f"systemd-run --quiet --unit=holder flock {lock} sleep 600")
    command = fetching(node, tmp_path, name="waits", source="file:///srv/waits.gguf")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    deploy = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **quiet)
    try:
        unit, pid = "moehost-fetch-waits.service", "0"
        for _ in range(300):
            pid = node.run(f"systemctl show --property MainPID --value {unit}")
            if pid != "0" and "python3" in node.run(f"cat /proc/{pid}/cmdline | tr '\\0' ' ' || true"):
                break
            time.sleep(0.1)
        assert node.run(f"stat -c %U /proc/{pid}") == "moehost-fetch"
        status = node.run(f"cat /proc/{pid}/status")
        assert "CapEff:\t0000000000000004" in status  # CAP_DAC_READ_SEARCH, for a file on the node
        assert "Seccomp:\t2" in status
        assert node.run(f"nsenter --target {pid} --mount ls -A /etc/moehost") == ""
    finally:
        node.run("systemctl stop holder")
        assert deploy.wait(timeout=120) == 0
        node.run(f"rm -rf {STORE}/waits /srv/waits.gguf")


class TestServer:
    @pytest.fixture
    def pid(self, node):
        return node.run(f"systemctl show --property MainPID --value {node.unit}")

    def test_it_does_not_write_its_models(self, node, pid):
        """By the mounts that it sees, whoever it is; and by the owner of the store."""
        model = node.run(f"ls -d {STORE}/tiny-qwen35moe/*.gguf")
        mount = node.run(f"findmnt --noheadings --output OPTIONS --target {model} --task {pid}")
        assert mount.split(",")[0] == "ro"
        failed = subprocess.run(
            ["podman", "exec", node.name, "nsenter", "--target", pid, "--mount", "touch", model], capture_output=True
        )
        assert b"Read-only file system" in failed.stderr
        outside = ["podman", "exec", node.name, "runuser", "-u", "moehost", "--", "touch", model]
        assert b"Permission denied" in subprocess.run(outside, capture_output=True).stderr

    def test_it_does_not_write_its_engine(self, node, pid):
        engine = "/opt/moehost/engine"
        assert node.run(f"findmnt --noheadings --output OPTIONS --target {engine} --task {pid}").startswith("ro,")

    def test_it_reaches_no_other_address(self, node):
        """As systemd has understood it; control groups of version 1, as here, do not enforce it."""
        shown = node.run(f"systemctl show --property IPAddressDeny,IPAddressAllow {node.unit}").splitlines()
        allowed, denied = (next(line for line in shown if key in line) for key in ("Allow", "Deny"))
        assert set(denied.partition("=")[2].split()) == {"::/0", "0.0.0.0/0"}
        assert set(allowed.partition("=")[2].split()) == {"127.0.0.0/8", "::1/128"}


class TestStore:
    def test_it_belongs_to_the_account_that_fetches(self, node):
        assert node.run(OWNERS) == FETCHER

    def test_a_file_of_another_account_is_linked_and_stays_theirs(self, node, tmp_path):
        """From a folder that the account can't enter; what only its owner reads is copied."""
        write(tmp_path / "theirs.gguf", Shape(seed=8))
        node.run("mkdir -p -m 700 /srv/theirs && chown games /srv/theirs")
        path, stored = "/srv/theirs/theirs.gguf", f"{STORE}/theirs/theirs.gguf"
        subprocess.run(["podman", "cp", str(tmp_path / "theirs.gguf"), f"{node.name}:{path}"], check=True)
        model = {"name": "theirs", "source": f"file://{path}"}
        for mode, names, owner in (("644", "2", "games"), ("600", "1", "moehost-fetch")):
            node.run(f"chown games:games {path} && chmod {mode} {path} && rm -rf {STORE}/theirs")
            assert fetched(node, tmp_path, **model) == ["Models | Have theirs in the store"]
            assert node.run(f"stat -c '%h %U' {stored}") == f"{names} {owner}"
            assert node.run(f"stat -c '%a %U' {path}") == f"{mode} games"
            assert fetched(node, tmp_path, **model) == []
        node.run(f"rm -rf {STORE}/theirs /srv/theirs")

    def test_the_store_of_an_older_version_is_taken_over_and_nothing_fetched(self, node):
        """It was root's, and a part of it a number that is nobody's."""
        folder = f"{STORE}/tiny-qwen35moe"
        node.run(f"chown -R root:root {STORE} && chown 54321:54321 {folder}/manifest.json")
        node.run(f"ln {folder}/tiny-qwen35moe.gguf /srv/theirs.gguf && chown games:games /srv/theirs.gguf")
        node.run(f"mkdir -p {STORE}/of-others && touch {STORE}/of-others/x && chown -R games:games {STORE}/of-others")
        look = f"stat -c '%i %h %s %Y %U' {folder}/tiny-qwen35moe.gguf"
        before, process = node.run(look), node.process
        assert before.endswith("games")
        done = node.deploy()
        assert set(changes(done)) == {
            "Base | Make the service account and the directories",
            "Models | Have the store belong to the account that fetches",
        }
        assert (node.run(look), node.process) == (before, process)
        assert (
            node.run(f"stat -c '%U' {STORE} {folder} {folder}/*.json {STORE}/.incoming | sort -u") == "moehost-fetch"
        )
        assert node.run(f"stat -c '%U' {STORE}/of-others {STORE}/of-others/x") == "games\ngames"
        assert changes(node.deploy()) == []
        node.run(f"rm -rf /srv/theirs.gguf {STORE}/of-others && chown moehost-fetch: {folder}/tiny-qwen35moe.gguf")

    def test_what_an_older_version_began_is_finished(self, node):
        """Its folders, lock and rest of a download were root's."""
        node.run(f"chown -R root:root {STORE} && rm -rf {STORE}/tiny-qwen35moe")
        node.run(f"install -m 600 /dev/null {STORE}/.incoming/.tiny-qwen35moe.lock")
        files = f"{STORE}/.incoming/tiny-qwen35moe/files"
        node.run(f"mkdir -p {files} && echo old >{files}/tiny-qwen35moe.gguf.part")
        assert "Models | Have tiny-qwen35moe in the store" in changes(node.deploy())
        assert json.loads(node.run(f"cat {STORE}/tiny-qwen35moe/manifest.json"))["model"] == "tiny-qwen35moe"
        assert node.run(OWNERS) == FETCHER
        assert changes(node.deploy()) == []
