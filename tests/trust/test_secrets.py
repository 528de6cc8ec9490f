"""Secrets that were planted are found nowhere but in their own files, after deploys, benchmarks and questions.

While each command runs, the arguments and the environment of every process on this computer, those in the node among
them, are read again and again. Afterwards all files of the node, its journal, what the commands printed, and the
results here are searched.
"""

import os
import secrets
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.fixtures.node import ROOT

# Each secret, and the files of the node that may hold it; what is in /run lies in memory.
ETC = "/etc/moehost"
CADDYS_COPY = "/run/moehost-gateway/caddy/autosave.json"
OWN_FILES = {
    "key of a service": {f"{ETC}/tiny/api-keys", "/run/moehost-gateway-keys/services", CADDYS_COPY},
    "key of a user": {f"{ETC}/gateway/user-keys-of-the-owner", "/run/moehost-gateway-keys/users", CADDYS_COPY},
    "token of the hub": {f"{ETC}/hub-token"},
    "address of notifications": {f"{ETC}/notify/url"},
}


class Watcher:
    """Reads arguments and environments of all processes while commands run."""

    def __init__(self, planted):
        self.planted, self.found, self.looks = planted, set(), 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.stopped.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for place in ("cmdline", "environ"):
                    try:
                        text = (process / place).read_bytes()
                    except OSError:
                        continue
                    self.found |= {
                        (name, place, text[:60]) for name, each in self.planted.items() if each.encode() in text
                    }
            self.looks += 1
            # Half of the time: what is looked at needs the processor, too.
            time.sleep(0.1)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()


@pytest.fixture(scope="module")
def planted(node, tmp_path_factory):
    """The secrets, what the commands said, and the watcher; the node has its own settings again afterwards."""
    folder = tmp_path_factory.mktemp("planted")
    values = {name: f"planted-{secrets.token_hex(16)}" for name in OWN_FILES}
    texts = {
        "key of a service": f"# ours\n{values['key of a service']}\n",
        "key of a user": f"alice {values['key of a user']}\n",
        "token of the hub": f"{values['token of the hub']}\n",
        "address of notifications": f"http://127.0.0.1:9/{values['address of notifications']}\n",
    }
    paths = {}
    for number, (name, text) in enumerate(texts.items()):
        paths[name] = folder / f"secret{number}"
        paths[name].write_text(text)
    settings = node.changed_settings(api_keys_file=str(paths["key of a service"]))
    settings["hf_token_file"] = str(paths["token of the hub"])
    settings["gateway"] = settings["gateway"] | {"user_keys_file": str(paths["key of a user"])}
    settings["notify"] = {"by": "webhook", "url_file": str(paths["address of notifications"])}
    inventory, host, out = str(node.inventory(settings)), f"@podman/{node.name}", folder / "results"
    here = ["--inventory", inventory]
    short = ["--runs", "4", "--lengths", "64", "--answer-tokens", "16"]
    commands = [
        ["pyinfra", inventory, "deploy.py", "--dry", "--diff"],
        ["pyinfra", inventory, "deploy.py", "--yes", "--json", "-vvv"],
        ["pyinfra", inventory, "deploy.py", "--yes", "--json", "--diff"],
        ["moehost", "bench", host, *here, *short, "--json", "--out", str(out)],
        ["moehost", "doctor", host, *here, "--json", "--verbose"],
        ["moehost", "lock", host, *here, "--json", "--folder", str(folder / "locks")],
        ["moehost", "keys", "list", host, *here, "--json"],
        ["moehost", "check-inventory", inventory, "--json"],
    ]
    said = {}
    with Watcher(values) as watcher:
        for command in commands:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
            said[" ".join(command[:2] + command[-1:])] = done.stdout + done.stderr
        # A question by the gateway with the user's key, and a unit that fails, which is told.
        for header in (f"Authorization: Bearer {values['key of a user']}", "Authorization: Bearer wrong"):
            text = f'header = "{header}"\ninsecure\nsilent\nresolve = "llm.home.arpa:8443:127.0.0.1"\n'
            words = ["podman", "exec", "--interactive", node.name, "curl", "--config", "-"]
            subprocess.run([*words, "https://llm.home.arpa:8443/v1/models"], input=text, text=True, check=True)
        node.run("systemctl kill --signal=KILL llama-server-tiny; systemctl stop llama-server-tiny")
        node.run("systemctl start llama-server-tiny")
    yield values, said, watcher, [out, folder / "locks"]
    assert node.deploy().returncode == 0


def test_the_secrets_were_planted(node, planted):
    for name, value in planted[0].items():
        assert node.run(f"grep -rlF {value} {ETC}"), name


def test_no_process_had_one_in_its_arguments_or_environment(planted):
    assert planted[2].looks > 50
    assert planted[2].found == set()


@pytest.mark.parametrize("name", OWN_FILES)
def test_only_its_own_files_have_it(node, planted, name):
    # The kernel's own file systems are left out; /run, /tmp and all mounts of disks are not.
    found = node.run(
        "find / \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o -type f -size -64M -print0 | "
        f"xargs -0 grep -lF {planted[0][name]} 2>/dev/null || true"
    ).split()
    # While a unit runs, systemd keeps its credentials in memory that nobody else can read.
    foreign = {each for each in found if not each.startswith("/run/credentials/")} - OWN_FILES[name]
    assert foreign == set()
    for each in found:
        assert node.run(f"stat -c %a {each}")[-1] == "0", each


def test_nobody_else_can_read_them(node, planted):
    patterns = " ".join(f"-e {each}" for each in planted[0].values())
    search = (
        f"find / -path /proc -prune -o -path /sys -prune -o -type f -size -64M -print0 | xargs -0 grep -lF {patterns}"
    )
    assert node.run(f"setpriv --reuid nobody --clear-groups sh -c '{search}' 2>/dev/null || true") == ""


def test_the_journal_has_none(node, planted):
    journal = node.run("journalctl --no-pager --output verbose")
    assert [name for name, each in planted[0].items() if each in journal] == []


def test_no_command_has_printed_one(planted):
    told = {
        (name, command) for name, each in planted[0].items() for command, said in planted[1].items() if each in said
    }
    assert told == set()


def test_no_result_here_has_one(planted):
    texts = {
        Path(folder, file): Path(folder, file).read_bytes()
        for root in planted[3]
        for folder, _, files in os.walk(root)
        for file in files
    }
    assert texts
    assert {path for path, text in texts.items() for each in planted[0].values() if each.encode() in text} == set()
