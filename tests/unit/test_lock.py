"""What a node is made of, pinned, and what has drifted from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from moehost import lock
from moehost.cli import main
from moehost.lock import LockError
from roles.lock.facts import Stack

SHA = {name: (name * 64)[:64] for name in "abcdef"}
TEXTS = {
    **Stack().default(),
    "os_release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "kernel": "6.12.48+deb13-amd64\n",
    "words": "BOOT_IMAGE=/vmlinuz-6.12 root=UUID=7 ro quiet hugepages=0:32\n",
    "packages": "installed podman 5.4.2+ds1-2\nnot-installed nvidia-driver \ninstalled systemd 257.8-1\n",
    "driver": "580.95.05, 98.02.52.00.02\n",
    "release": "8337e4cd3861-0a1b2c3d\n",
    "build": json.dumps({"source": "git", "commit": "8337e4cd", "cuda": None}),
    "programs": f"{SHA['a']}  llama-bench\n{SHA['b']} *llama-server\n",
    "images": f"sha256:{SHA['c']} localhost/moehost/ik_llama:8337e4cd3861-0a1b2c3d\n",
    "models": json.dumps({"model": "q", "files": [{"name": "q-1.gguf", "sha256": SHA["d"]}]})
    + "\n"
    + json.dumps({"model": "r", "files": [{"name": "r.gguf", "sha256": SHA["e"]}]}, indent=2),
    "files": f"{SHA['f']}  /etc/systemd/system/llama-server-q.service\n",
}
LOCK = {
    "system": {
        "command line": "ro quiet hugepages=0:32",
        "driver": "580.95.05, 98.02.52.00.02",
        "kernel": "6.12.48+deb13-amd64",
        "os": "Debian GNU/Linux 13 (trixie)",
    },
    "package": {"podman": "5.4.2+ds1-2", "systemd": "257.8-1"},
    "engine": {
        "commit": "8337e4cd",
        "program llama-bench": SHA["a"],
        "program llama-server": SHA["b"],
        "release": "8337e4cd3861-0a1b2c3d",
    },
    "image": {"localhost/moehost/ik_llama:8337e4cd3861-0a1b2c3d": f"sha256:{SHA['c']}"},
    "model": {"q/q-1.gguf": SHA["d"], "r/r.gguf": SHA["e"]},
    "file": {"/etc/systemd/system/llama-server-q.service": SHA["f"]},
}


def test_everything_is_in_it():
    assert lock.of_node(TEXTS) == LOCK


def test_a_node_that_has_nothing_has_an_empty_lock():
    assert lock.of_node(Stack().default()) == {}


def test_what_is_cut_off_is_left_out():
    assert lock.of_node({**TEXTS, "models": TEXTS["models"][:-9]})["model"] == {"q/q-1.gguf": SHA["d"]}


names = st.dictionaries(st.text(min_size=1), st.text())


@given(st.dictionaries(st.text(min_size=1), names))
def test_a_file_is_read_as_it_was_written(found):
    assert lock.parse(lock.to_text(found), "there") == found
    assert lock.drifts(found, found) == []


@pytest.mark.parametrize("text", ["", "[]", '{"system": 3}', "no"])
def test_a_file_that_is_no_lock(text):
    with pytest.raises(LockError, match=r"there: is no lock .*; write one by `moehost lock`"):
        lock.parse(text, "there")


def test_what_has_drifted_is_named_in_a_line():
    changed = {"kernel": "6.12.63+deb13-amd64\n", "files": "", "release": "b\n"}
    changed["packages"] = "installed crun 1.21-1\n"
    found = lock.drifts(LOCK, lock.of_node({**TEXTS, **changed}))
    assert [each.text for each in found] == [
        "system kernel: 6.12.48+deb13-amd64 -> 6.12.63+deb13-amd64",
        "package crun: absent -> 1.21-1",
        "package podman: 5.4.2+ds1-2 -> absent",
        "package systemd: 257.8-1 -> absent",
        "engine release: 8337e4cd3861-0a1b2c3d -> b",
        "file /etc/systemd/system/llama-server-q.service: ffffffffffff... -> absent",
    ]


class TestCommand:
    """`moehost lock` as an owner calls it."""

    @pytest.fixture(autouse=True)
    def here(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PYINFRA_FAKE_DELAY", "0")
        monkeypatch.setenv("PYINFRA_FAKE_DELAY_JITTER", "0")
        self.folder = tmp_path

    def run(self, *arguments: str, gone: bool = False, **texts: str) -> Result:
        """One call with an inventory of one host, or with one more that nobody reaches."""
        said = "".join(f"=== {key}\n{text}\n" for key, text in {**TEXTS, **texts}.items())
        hosts = [("@fake/epyc", {"fake_responses": {"=== os_release": said.splitlines()}})]
        hosts += [("127.0.0.1", {"ssh_port": 1, "ssh_user": "root"})] if gone else []
        (self.folder / "hosts.py").write_text(f"nodes = {hosts!r}\n")
        return CliRunner().invoke(main, ["lock", f"{self.folder}/hosts.py", "--folder", str(self.folder), *arguments])

    @property
    def written(self) -> lock.Lock:
        """What is locked."""
        return lock.parse((self.folder / "fake_epyc.json").read_text(), "there")

    def test_the_lock_is_a_file_for_each_host(self):
        done = self.run()
        assert done.exit_code == 0, done.output
        assert self.written == LOCK
        assert f"moehost: @fake/epyc: 14 things are locked in {self.folder}/fake_epyc.json" in done.stderr

    def test_the_same_node_has_not_drifted(self):
        self.run()
        done = self.run("--check")
        assert (done.exit_code, done.stdout) == (0, "")
        assert "moehost: @fake/epyc: is as it was locked" in done.stderr

    def test_a_drift_ends_with_1_and_writes_nothing(self):
        self.run()
        done = self.run("--check", kernel="7.0")
        assert done.exit_code == 1
        assert done.stdout == "@fake/epyc: system kernel: 6.12.48+deb13-amd64 -> 7.0\n"
        assert self.written == LOCK
        data = json.loads(self.run("--check", "--json", kernel="7.0").stdout)
        assert data == {
            "@fake/epyc": [{"section": "system", "name": "kernel", "locked": "6.12.48+deb13-amd64", "found": "7.0"}]
        }

    def test_without_a_lock_there_is_nothing_to_compare_with(self):
        done = self.run("--check")
        assert (done.exit_code, done.stderr) == (
            2,
            f"moehost: {self.folder}/fake_epyc.json: there is no lock; write one by `moehost lock`\n",
        )

    def test_a_host_that_can_not_be_asked_fails_alone(self):
        done = self.run(gone=True)
        assert done.exit_code == 1
        assert "127.0.0.1: can't be asked: " in done.stderr
        assert self.written == LOCK
        assert not (self.folder / "127.0.0.1.json").exists()
