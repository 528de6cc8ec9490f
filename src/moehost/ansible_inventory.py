"""An inventory of Ansible's as one of pyinfra's: groups, the nodes in them, how each is reached, its settings.

Ansible reads it (`ansible_variables`, in a process of its own). A host is a node here when it has a variable that
begins with `moehost_`; what follows is the name of a setting. The others are somebody else's machines, and left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moehost.ansible_variables import CONNECTION, PREFIX

# How an inventory of this kind is named on a command line: `ansible:PATH`.
SCHEME = "ansible:"
Hosts = list[tuple[str, dict[str, Any]]]
# By the last part of a plugin's name: those in front are its collection's.
CONNECTOR = {
    **dict.fromkeys(("ssh", "smart", "paramiko", "paramiko_ssh"), "ssh"),
    "local": "local",
    "podman": "podman",
    **dict.fromkeys(("docker", "docker_api"), "docker"),
}
# Options of ssh by pyinfra's names, and those that are read from a file in OpenSSH's form.
SSH_DATA = {
    "stricthostkeychecking": "ssh_strict_host_key_checking",
    "userknownhostsfile": "ssh_known_hosts_file",
    "identityfile": "ssh_key",
    "user": "ssh_user",
    "port": "ssh_port",
    "forwardagent": "ssh_forward_agent",
}
SSH_FILE = ("ProxyJump", "ProxyCommand", "IdentityAgent", "ConnectTimeout", "ServerAliveInterval")
LETTERS = {"J": "ProxyJump", "i": "IdentityFile", "l": "User", "p": "Port"}
# They make a connection faster, quieter or fussier about how it asks, and reach no other machine.
WITHOUT_EFFECT = (
    "addressfamily", "batchmode", "checkhostip", "compression", "controlmaster", "controlpath", "controlpersist",
    "gssapiauthentication", "hashknownhosts", "identitiesonly", "kbdinteractiveauthentication", "loglevel",
    "passwordauthentication", "preferredauthentications", "pubkeyauthentication", "serveralivecountmax",
    "tcpkeepalive",
)  # fmt: skip


class AnsibleInventoryError(ValueError):
    """One line: what, where, how to mend it."""


def groups(path: str) -> dict[str, Hosts]:
    """The groups of an inventory of Ansible's with their nodes, as pyinfra wants them.

    + path: a file or folder that Ansible takes as an inventory, from the working directory on

    Raises AnsibleInventoryError.
    """
    found = _asked(Path(path).expanduser())
    nodes = {name: each for name, each in found["hosts"].items() if any(key.startswith(PREFIX) for key in each)}
    if not nodes:
        raise AnsibleInventoryError(
            f"{path}: no host has a variable that begins with {PREFIX}; give your nodes moehost_services, "
            "see docs/ansible.md"
        )
    made: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, variables in nodes.items():
        try:
            host, data = _host(name, variables, found["defaults"])
        except ValueError as error:
            raise AnsibleInventoryError(f"{path}: {name}: {error}") from None
        if host in [other for other, _ in made.values()]:
            raise AnsibleInventoryError(f"{path}: {name}: is {host}, as another host is; leave one of them out")
        made[name] = host, data
    # One whose name is another for pyinfra, as a container's, is also found by the one that Ansible knows.
    own = {name: [node] for name, node in made.items() if node[0] != name}
    return own | {
        group: [made[name] for name in members if name in made]
        for group, members in found["groups"].items()
        if group == "all" or any(name in made for name in members)
    }


def hosts(path: str) -> dict[str, dict[str, Any]]:
    """The nodes of an inventory of Ansible's with their data; raises as `groups` does."""
    return dict(groups(path)["all"])


def _config(path: Path) -> Path | None:
    """The nearest `ansible.cfg` beside or above an inventory, in folders that nobody else may write to."""
    for folder in path.resolve().parents:
        if (folder / "ansible.cfg").is_file() and not folder.stat().st_mode & 0o002:
            return folder / "ansible.cfg"
    return None


def _asked(path: Path) -> Any:
    if not path.exists():
        raise AnsibleInventoryError(f"{path}: there is no such file")
    environment = {**os.environ, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True"}
    if config := _config(path):
        environment.setdefault("ANSIBLE_CONFIG", str(config))
    command = [sys.executable, "-P", "-m", "moehost.ansible_variables", str(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode or not done.stdout:
        raise AnsibleInventoryError(f"{path}: Ansible can't read it: {lines[-1] if lines else 'no reason given'}")
    found = json.loads(done.stdout)
    if "mistake" in found:
        raise AnsibleInventoryError(f"{path}: {_mended(found['mistake'], lines)}")
    return found


def _mended(mistake: str, talk: list[str]) -> str:
    """Why Ansible can't read an inventory; the reason of one that is torn stands in a warning."""
    if mistake.startswith("Completely failed to parse"):
        warned = next((line for line in talk if "Failed to parse inventory" in line), "")
        mistake = warned.partition(" plugin: ")[2].removeprefix("Failed to parse inventory: ") or mistake
        return f"Ansible can't read it: {mistake}"
    if "ecrypt" in mistake and "vault secrets" in mistake:
        return f"{mistake.rstrip('.')}; ANSIBLE_VAULT_PASSWORD_FILE names the file with the vault's password"
    return mistake


def _host(name: str, variables: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A node as pyinfra wants it: its name, and how it is reached beside its settings."""
    settings = {key.removeprefix(PREFIX): value for key, value in variables.items() if key.startswith(PREFIX)}
    said = {
        key: next((variables[each] for each in names if variables.get(each) is not None), defaults.get(key))
        for key, names in CONNECTION.items()
    }
    said = {key: value for key, value in said.items() if value is not None}
    connection = str(said.get("connection", "ssh"))
    connector = CONNECTOR.get(connection.rpartition(".")[2])
    if connector is None:
        known = "ssh, local, podman or docker"
        raise ValueError(f"ansible_connection: {connection!r} is no way that is known here; write {known}")
    if connector == "local":
        return "@local", settings | dict(_root(said, None))
    if connector in ("podman", "docker"):
        return f"@{connector}/{said.get('host', name)}", settings | dict(_root(said, None))
    data = dict(_ssh(name, said, defaults.get("folder")))
    return name, settings | data | dict(_root(said, data.get("ssh_user")))


def _root(said: Mapping[str, Any], user: str | None) -> Iterator[tuple[str, Any]]:
    """How a node is root: one that others log in to needs sudo, whether or not the inventory says so."""
    for key, only in (("become_method", "sudo"), ("become_user", "root")):
        if said.get(key, only) not in (only, f"ansible.builtin.{only}"):
            raise ValueError(f"ansible_{key}: {said[key]!r}: here it is {only}, as moehost needs it; set it to that")
    if _true(said.get("become", False)) or user not in (None, "root"):
        yield "_sudo", True
        if "become_password" in said:
            yield "_sudo_password", str(said["become_password"])


def _ssh(name: str, said: Mapping[str, Any], folder: str | None) -> Iterator[tuple[str, Any]]:
    """pyinfra's data for a connection over SSH."""
    if not _true(said.get("host_key_checking", True)):
        yield "ssh_strict_host_key_checking", "no"
    lines = []
    for key, value in _options(f"{said.get('common_args', '')} {said.get('extra_args', '')}"):
        lower = key.lower()
        if lower in SSH_DATA:
            yield _datum(SSH_DATA[lower], value, folder)
        elif lower in map(str.lower, SSH_FILE) or lower == "f":
            lines.append(f"Include {Path(value).expanduser().resolve()}" if lower == "f" else f"{key} {value}")
        elif lower not in WITHOUT_EFFECT:
            raise ValueError(f"ansible_ssh_common_args: {key}: pyinfra does not know this option; leave it out")
    if lines:
        yield "ssh_config_file", _config_file(str(said.get("host", name)), lines)
    for key, data in (("host", "hostname"), ("port", "port"), ("user", "user"), ("key", "key"), ("password",) * 2):
        if key in said:
            yield _datum(f"ssh_{data}", said[key], folder)


def _datum(key: str, value: Any, folder: str | None) -> tuple[str, Any]:
    text = str(value)
    if key == "ssh_port":
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise ValueError(f"ansible_port: {text!r} is no port; write a number from 1 to 65535")
        return key, int(text)
    if key == "ssh_forward_agent":
        return key, _true(text)
    if key in ("ssh_key", "ssh_known_hosts_file"):
        # Ansible is run where its configuration lies, and so relative paths begin there.
        path = Path(text).expanduser()
        return key, str(Path(folder, path) if folder and not path.exists() else path)
    return key, text


def _options(text: str) -> Iterator[tuple[str, str]]:
    """The options in arguments of ssh, e.g. `-o ProxyJump=a -J b`, as OpenSSH's files name them."""
    words = iter(shlex.split(text))
    for word in words:
        letter, rest = word[1:2], word[2:]
        if word.startswith("-") and letter in "46ACqTtv" and not rest:
            yield ("ForwardAgent", "yes") if letter == "A" else ("LogLevel", "")
        elif word.startswith("-") and letter in ("o", "F", *LETTERS):
            value = rest or next(words, "")
            if letter == "o":
                letter, _, value = value.replace("=", " ", 1).strip().partition(" ")
            yield LETTERS.get(letter, letter), value.strip()
        else:
            raise ValueError(f"ansible_ssh_common_args: {word!r} is not understood; write options as -o NAME=VALUE")


def _config_file(host: str, lines: list[str]) -> str:
    """A file in OpenSSH's form, for what pyinfra reads from such files only; it lives as long as this process."""
    own = [line for line in lines if not line.startswith("Include")]
    others = [line for line in lines if line.startswith("Include")] or ["Include ~/.ssh/config"]
    text = "\n".join([f"Host {host}", *own, "Host *", *others, ""])
    path = Path(_folder().name, hashlib.sha256(text.encode()).hexdigest()[:16])
    path.write_text(text)
    return str(path)


@cache
def _folder() -> TemporaryDirectory[str]:
    """Is gone when this process ends."""
    return TemporaryDirectory(prefix="moehost-ssh-")


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "on", "y", "1")
